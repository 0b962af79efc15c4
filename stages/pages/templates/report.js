"use strict";
// Everything that is shown here is text that a model wrote or a file held: it is set as text, never as markup.
const said = JSON.parse(document.getElementById("replies-data").textContent);
const chosen = { before: said.before, after: said.after, task: "", list: "better" };
const LISTS = ["better", "worse", "best", "worst"];
const AT_ONCE = 6;
let shown = AT_ONCE;

function make(tag, kind, text, ...children) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text) element.textContent = text;
  element.append(...children);
  return element;
}

function worth(value) {
  return value === null ? "not judged" : `${Math.round(100 * value)}%`;
}

function side(row, reply, other) {
  const kind = reply.value === null || other.value === null || reply.value === other.value ? "" : reply.value > other.value ? "good" : "bad";
  const found = make("div", `side ${kind}`, "", make("h3", "", "", make("span", "", row), make("b", "", worth(reply.value))));
  if (reply.answer === null) found.append(make("p", "unformed", reply.text || "(nothing)"));
  else found.append(make("p", "thought", reply.thinking || "(nothing)"), make("p", "answer", reply.answer));
  const parts = Object.entries(reply.parts).map(([name, value]) => `${name.replaceAll("_", " ")} ${+value.toFixed(2)}`);
  const verdict = [reply.reason, ...parts].filter(Boolean).join(" · ");
  if (verdict) found.append(make("p", "verdict", verdict));
  return found;
}

function card(sample) {
  const [before, after] = [sample.said[chosen.before], sample.said[chosen.after]];
  const film = make("img", "film");
  film.src = said.strips[sample.strip];
  film.alt = `the frames that were shown of ${sample.id}`;
  const asked = make("dl", "asked", "", make("dt", "", "asked"), make("dd", "question", sample.question), make("dt", "", "right is"), make("dd", "", sample.reference));
  const sides = chosen.before === chosen.after ? [side(chosen.after, after, after)] : [side(chosen.before, before, after), side(chosen.after, after, before)];
  return make("article", "card-reply", "",
    make("header", "", "", make("span", "tag", sample.task.replaceAll("_", " ")), make("span", "id", sample.id)),
    film, asked, make("div", "sides", "", ...sides));
}

const change = (sample) => sample.said[chosen.after].value - sample.said[chosen.before].value;
const value = (sample) => sample.said[chosen.after].value;
const RULES = {
  better: { fits: (sample) => change(sample) > 0, order: (a, b) => change(b) - change(a) },
  worse: { fits: (sample) => change(sample) < 0, order: (a, b) => change(a) - change(b) },
  best: { fits: () => true, order: (a, b) => value(b) - value(a) },
  worst: { fits: () => true, order: (a, b) => value(a) - value(b) },
};

function listed(list) {
  const judged = (sample) => [chosen.before, chosen.after].every((row) => sample.said[row] && sample.said[row].value !== null);
  return said.samples.filter((sample) => (!chosen.task || sample.task === chosen.task) && judged(sample) && RULES[list].fits(sample)).sort(RULES[list].order);
}

function counted(list) {
  const tasks = Object.entries(said.counts[`${chosen.before}>${chosen.after}`] || {}).filter(([task]) => !chosen.task || task === chosen.task);
  return tasks.reduce((sum, [, count]) => sum + (list in count ? count[list] : count.better + count.worse + count.same), 0);
}

function show() {
  for (const name of ["before", "after", "task"]) document.getElementById(`reply-${name}`).value = chosen[name];
  for (const list of LISTS) {
    const tab = document.getElementById(`tab-${list}`);
    tab.setAttribute("aria-selected", String(list === chosen.list));
    // One stop of the Tab key for all four: arrows go from one to the next.
    tab.tabIndex = list === chosen.list ? 0 : -1;
    const count = tab.querySelector("small");
    if (count) count.textContent = counted(list).toLocaleString("en");
  }
  document.getElementById("reply-panel").setAttribute("aria-labelledby", `tab-${chosen.list}`);
  const found = listed(chosen.list);
  document.getElementById("reply-count").textContent = found.length ? `${Math.min(shown, found.length)} of ${found.length} on this page` : "";
  document.getElementById("reply-list").replaceChildren(...found.slice(0, shown).map(card));
  const more = document.getElementById("reply-more");
  more.hidden = found.length <= shown;
  more.textContent = `show more (${found.length - shown} left on this page)`;
  document.getElementById("reply-none").hidden = found.length > 0;
}

for (const name of ["before", "after", "task"])
  document.getElementById(`reply-${name}`).addEventListener("input", (event) => { chosen[name] = event.target.value; shown = AT_ONCE; show(); });
function choose(list) {
  chosen.list = list;
  shown = AT_ONCE;
  show();
}

const STEPS = { ArrowRight: (at) => at + 1, ArrowLeft: (at) => at - 1, Home: () => 0, End: () => LISTS.length - 1 };
LISTS.forEach((list, at) => {
  const tab = document.getElementById(`tab-${list}`);
  tab.addEventListener("click", () => choose(list));
  tab.addEventListener("keydown", (event) => {
    if (!(event.key in STEPS) || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const next = LISTS[(STEPS[event.key](at) + LISTS.length) % LISTS.length];
    choose(next);
    document.getElementById(`tab-${next}`).focus();
  });
});
document.getElementById("reply-more").addEventListener("click", () => {
  const before = shown;
  shown += AT_ONCE;
  show();
  // The button may be gone; who pressed it goes on reading at the first reply that is new.
  const first = document.getElementById("reply-list").children[before];
  first.tabIndex = -1;
  first.focus({ preventScroll: true });
});
if (!listed("better").length) chosen.list = "best";
show();

// The section that is being read stands out among the links, and its link is in view on a narrow screen.
const links = new Map([...document.querySelectorAll(".sections a")].map((link) => [link.hash.slice(1), link]));
const bar = document.querySelector(".sections .wide");
const still = matchMedia("(prefers-reduced-motion: reduce)");
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) {
      link.classList.remove("here");
      link.removeAttribute("aria-current");
    }
    const link = links.get(entry.target.id);
    link.classList.add("here");
    link.setAttribute("aria-current", "true");
    bar.scrollTo({ left: link.offsetLeft - bar.clientWidth / 2 + link.offsetWidth / 2, behavior: still.matches ? "auto" : "smooth" });
  }
}, { rootMargin: "-12% 0px -80% 0px" });
for (const id of links.keys()) watcher.observe(document.getElementById(id));
