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
