/** Light or dark before the page is drawn: a classic script, since a module would run after. */
{
  let theme = null;
  try {
    theme = JSON.parse(localStorage.getItem('gptoss.theme') ?? 'null');
  } catch {
    // Without storage the system's colours are used.
  }
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
}
