"use strict";
// The page says everything without this script; it adds values under the pointer and the slider over the sheets.
(() => {
  const charts = JSON.parse(document.getElementById("figures").textContent).map((figures, index) => {
    const box = document.querySelectorAll(".plotbox")[index];
    return {
      ...figures, box,
      svg: box.querySelector("svg.plot"),
      cursor: box.querySelector(".cursor"),
      values: [...box.parentElement.querySelectorAll(".legend b")],
    };
  });
  const place = document.getElementById("at");
  const resting = charts.map((chart) => chart.values.map((value) => value.textContent));
  const restingPlace = place ? place.textContent : "";
  const shown = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e5 ? Math.round(value).toLocaleString("en").replaceAll(",", "\u202f")
      : size < 1e-4 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };
  const nearest = (steps, step) => {
    let low = 0, high = steps.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle; else high = middle;
    }
    return high >= 0 && Math.abs(steps[high] - step) < Math.abs(steps[low] - step) ? high : low;
  };
  let current = null;
  const pointTo = (step) => {
    current = step;
    for (const chart of charts) {
      const at = `${(100 * step) / chart.last}%`;
      chart.cursor.setAttribute("x1", at);
      chart.cursor.setAttribute("x2", at);
      chart.cursor.setAttribute("visibility", "visible");
      chart.series.forEach((line, k) => {
        if (line.steps.length) chart.values[k].textContent = shown(line.values[nearest(line.steps, step)]);
      });
    }
    if (place) place.textContent = `Step ${step.toLocaleString("en").replaceAll(",", "\u202f")}`;
  };
  const rest = () => {
    current = null;
    charts.forEach((chart, index) => {
      chart.cursor.setAttribute("visibility", "hidden");
      chart.values.forEach((value, k) => { value.textContent = resting[index][k]; });
    });
    if (place) place.textContent = restingPlace;
  };
  for (const chart of charts) {
    const longest = chart.series.reduce((a, b) => (b.steps.length > a.steps.length ? b : a)).steps;
    if (!longest.length) continue;
    const follow = (event) => {
      const frame = chart.svg.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - frame.left) / frame.width));
      pointTo(longest[nearest(longest, share * chart.last)]);
    };
    chart.box.addEventListener("pointermove", follow);
    chart.box.addEventListener("pointerdown", follow);
    chart.box.addEventListener("pointerleave", rest);
    chart.box.tabIndex = 0;
    chart.box.addEventListener("blur", rest);
    chart.box.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const from = current === null ? longest.length - 1 - by : nearest(longest, current);
      pointTo(longest[Math.min(longest.length - 1, Math.max(0, from + by))]);
    });
  }

  const strip = document.querySelector(".strip");
  const slider = document.querySelector(".slider");
  if (!strip || !slider) return;
  const sheets = [...strip.children], input = slider.querySelector("input"), label = slider.querySelector("output");
  const button = slider.querySelector("button");
  const name = (k) => { label.textContent = sheets[k].dataset.name; };
  const show = (k) => { strip.scrollTo({ left: sheets[k].offsetLeft - strip.offsetLeft, behavior: "instant" }); name(k); };
  slider.hidden = false;
  input.addEventListener("input", () => show(Number(input.value)));
  strip.addEventListener("scroll", () => {
    const k = Math.round(strip.scrollLeft / (sheets[0].offsetWidth + 16));
    if (k >= 0 && k < sheets.length) { input.value = String(k); name(k); }
  }, { passive: true });
  let playing = null;
  const stop = () => { clearInterval(playing); playing = null; button.textContent = "Play"; };
  button.addEventListener("click", () => {
    if (playing) { stop(); return; }
    let k = Number(input.value) === sheets.length - 1 ? -1 : Number(input.value);
    button.textContent = "Stop";
    playing = setInterval(() => {
      k += 1;
      input.value = String(k);
      show(k);
      if (k === sheets.length - 1) stop();
    }, 600);
  });
  const last = () => { input.value = String(sheets.length - 1); show(sheets.length - 1); };
  last();
  addEventListener("load", last);
})();
