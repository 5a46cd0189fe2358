// Loaded before the first paint, so that a dark page never flashes white.
try {
  const theme = JSON.parse(localStorage.getItem("m40llm.theme"));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // No storage: the system's choice holds.
}
