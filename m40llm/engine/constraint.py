"""What an answer must be like: which tokens may come next. The engine knows no more of it."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """One answer's, which is told of each token as it is chosen."""

    def allowed(self) -> NDArray[np.intp]:
        """Ids of the tokens that may come next, ascending, at least one."""
        ...

    def heed(self, token_id: int) -> None:
        """It was chosen: one of those allowed."""
        ...

    def fork(self) -> "Constraint":
        """Another that has been told the same."""
        ...
