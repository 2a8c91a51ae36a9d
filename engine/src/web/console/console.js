"use strict";
// Keeps the overview's figures and plots current. Every page works without this.
(() => {
  const EVERY_MS = 5000;
  const live = document.querySelector("[data-activity]");
  if (!live) return;

  const put = (place, text) => {
    if (place && place.textContent !== text) place.textContent = text;
  };

  function alarm(text) {
    const place = live.querySelector("[data-alarm]");
    put(place, text);
    place.hidden = text === "";
  }

  function show(figures) {
    alarm(figures.alarm);
    for (const place of live.querySelectorAll("[data-count]")) put(place, figures[place.dataset.count]);
    live.querySelector("[data-stuck]").classList.toggle("stuck", figures.is_stuck);
    for (const plot of figures.plots) {
      const place = live.querySelector(`[data-plot="${plot.id}"]`);
      if (!place) continue;
      put(place.querySelector("[data-sum]"), plot.sum);
      put(place.querySelector("[data-peak]"), plot.peak);
      place.querySelector("polyline").setAttribute("points", plot.points);
    }
  }

  async function refresh() {
    if (!document.hidden) {
      try {
        const answer = await fetch(live.dataset.activity, { cache: "no-store", credentials: "same-origin" });
        if (!answer.ok) throw new Error(`the console answered ${answer.status}`);
        show(await answer.json());
      } catch (error) {
        alarm(`These figures are old: ${error.message}. Reload the page.`);
      }
    }
    setTimeout(refresh, EVERY_MS);
  }

  setTimeout(refresh, EVERY_MS);
})();
