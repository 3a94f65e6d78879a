// What the pages have in common: a worker to ask, a sentence that says what goes on, a button that starts and stops it.
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" }), asked = [];
worker.onmessage = ({ data: [end, value] }) => asked.shift()[end](value);
worker.onerror = () => asked.splice(0).forEach(({ reject }) => reject(new Error("the browser refuses the worker")));
export const ask = (question, given) => new Promise((resolve, reject) => {
  asked.push({ resolve, reject }); // answers come in the order of the questions
  worker.postMessage([question, given]);
});
export const read = (name) => ask("read", new URL(`weights/${name}`, import.meta.url).href);

export const STILL = matchMedia("(prefers-reduced-motion: reduce)"); // then only what is done comes on view
export const wait = (least) => new Promise((resolve) => setTimeout(resolve, STILL.matches ? 0 : least));

export const part = (name) => document.querySelector(`.widget .${name}`);
export function say(words, kind = "") {
  Object.assign(part("told"), { textContent: words, className: `told ${kind}` });
  part("go").textContent = kind === "busy" ? "Stop" : part("go").value;
}

// Halting probability against segment, a line for each look: what changes of an SVG that is part of the page
export function curve(frames, seen, enough) {
  const longest = Math.max(8, frames.length), x = (at) => 44 + 284 * at / (longest - 1), y = (p) => 134 - 124 * p;
  const step = [1, 2, 5, 10, 20, 50, 100, 200].find((step) => 8 * step >= longest), point = frames[seen];
  const begins = (at) => !at || frames[at].look !== frames[at - 1].look;
  const line = frames.map(({ halt }, at) => `${begins(at) ? "M" : "L"}${x(at)} ${y(halt)}`);
  const ticks = [...Array(longest).keys()].filter((at) => at === 0 || (at + 1) % step === 0);
  return ticks.map((at) => `<text x="${x(at)}" y="150">${at + 1}</text>`).join("") +
    (enough === undefined ? "" : `<path class="enough" d="M44 ${y(enough)}H328M44 166H72"/>
      <text x="130" y="170">sure enough to stop</text>`) + `<path class="line" d="${line.join("")}"/>` +
    (point ? `<path class="here" d="M${x(seen)} 10V134"/><circle cx="${x(seen)}" cy="${y(point.halt)}" r="5"/>` : "");
}
