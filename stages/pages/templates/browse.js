"use strict";
const chosen = { task: "", split: "", reason: "", text: "" };
const controls = Object.fromEntries(Object.keys(chosen).map((name) => [name, document.getElementById(name)]));
function show() {
  for (const name of Object.keys(chosen)) chosen[name] = controls[name].value.trim().toLowerCase();
  const fits = (element, names) => names.every((name) => !chosen[name] || element.dataset[name] === chosen[name])
    && (!chosen.text || element.textContent.toLowerCase().includes(chosen.text));
  let samples = 0, rejects = 0;
  for (const sample of document.querySelectorAll("article")) {
    sample.hidden = Boolean(chosen.reason) || !fits(sample, ["task", "split"]);
    samples += !sample.hidden;
  }
  for (const row of document.querySelectorAll("tr.reject")) {
    row.hidden = !fits(row, ["reason"]) || Boolean(chosen.task || chosen.split);
    rejects += !row.hidden;
  }
  document.getElementById("count").textContent = `${samples} samples and ${rejects} rejects shown`;
  document.getElementById("samples").hidden = !samples;
  document.getElementById("rejects").hidden = !rejects;
  document.getElementById("none").hidden = Boolean(samples || rejects);
  const kept = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value));
  history.replaceState(null, "", kept.size ? `#${kept}` : "#");
}
const asked = new URLSearchParams(location.hash.slice(1));
for (const name of Object.keys(chosen)) {
  if (asked.has(name)) controls[name].value = asked.get(name);
  controls[name].addEventListener("input", show);
}
show();
