// Runs before the first paint, so that a dark page never flashes white.
(() => {
  let theme = null;
  try {
    theme = JSON.parse(localStorage.getItem("tpudeploy.preferences") || "{}").theme;
  } catch {
    // Storage can be switched off or damaged: the system's theme it is.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
