// Before the first paint: the theme that was chosen here, so that nobody is dazzled. store.js has the rest.
try {
  const theme = localStorage.getItem("meshnode.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // a browser that keeps nothing follows the system
}
