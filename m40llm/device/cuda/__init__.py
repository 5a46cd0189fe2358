"""Real cards, through numba-cuda. Nothing here is imported before somebody asks for a card."""
