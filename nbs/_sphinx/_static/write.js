// The page that writes: a beginning goes in, and each token that comes out can be asked what else might stand there.
import { ask, part, read, say, wait } from "./page.js";
import { encode_chat, tokenizer_from } from "./text.js";

const MOST = 400, PACE = 25, SHOWN = 6; // tokens of one go, least milliseconds of each, likeliest ones on view
const NAMES = { " ": "space", "\n": "line break", "<eos>": "end of turn" }; // of what cannot be seen

let meta, tokenizer, chat; // of the model, and whether it takes turns
let turns = []; // what it has not forgotten of a conversation: { role, content }
let seen, going = 0; // the token on view; a number, of which a new one makes whatever is being written pointless

const make = (tag, values) => Object.assign(document.createElement(tag), values);
const name = (id) => NAMES[tokenizer.names[id]] ?? tokenizer.names[id];
const percent = (share) => (share < 0.001 ? "<\u00a00.1" : (100 * share).toFixed(share < 0.0995 ? 1 : 0)) + "\u00a0%";

function clear() {
  going++;
  [turns, part("text").value, part("choice").value, part("place").hidden] = [[], "", "", true];
  part("said").replaceChildren();
  say("An empty page.");
}

// What a model knows, and the longest of the beginnings that are recorded with it
function meet(found) {
  [meta, tokenizer, chat] = [found, tokenizer_from(found.config.tokenizer), found.config.system === "dialogue"];
  const recorded = Object.keys(meta.answers), known = tokenizer.names.slice(tokenizer.specials);
  part("choice").replaceChildren(...["", ...recorded].map((text) => new Option(text || "your own", text)));
  part("text").value = part("choice").value = recorded.reduce((a, b) => (b.length > a.length ? b : a));
  part("known").textContent = `${known.length} ${tokenizer.kind}s: ${known.join(" ")}`;
  part("said").dataset.system = meta.config.system;
}

// What the model reads first: the end of a text, or the newest turns of a conversation. An Error says why it cannot.
function prompt(text) {
  const system = chat && part("system").value.trim() ? [{ role: "system", content: part("system").value }] : [];
  const missing = [...system.map(({ content }) => content), text].flatMap(tokenizer.missing), P = meta.config.seq_len;
  if (!text.trim()) throw new Error("Type a beginning, or take one of the list.");
  if (missing.length) throw new Error(`The model has never met ${missing.join(", ")}. What it knows is listed below.`);
  if (!chat) return tokenizer.encode(text).slice(-Math.max(1, Math.floor(0.75 * P)));
  let heard = [...turns, { role: "user", content: text }], ids;
  while ((ids = encode_chat(tokenizer, [...system, ...heard], "assistant")).length >= P) {
    if (heard.length < 3) throw new Error(`Too long: the model has ${P} places for turn and reply, not ${ids.length}.`);
    heard = heard.slice(2);
  }
  turns = heard;
  return ids;
}

// hrm.core.generate.ChatSession.say, or hrm.text.chat.TextChat.say; the model is fetched first where it is not there
async function write() {
  const mine = ++going, turn = { role: "assistant", content: "" };
  try {
    say(meta ? "Writing." : "The model is on its way.", "busy");
    const found = meta ?? await read(part("model").value);
    if (going !== mine) return;
    if (!meta) meet(found);
    const text = part("text").value, page = make("p", { role: "listbox", ariaLabel: "What the model wrote" });
    const given = { ids: prompt(text), endless: !chat, never: chat ? 0 : tokenizer.specials, shown: SHOWN };
    for (const one of ["temperature", "top_p", "seed"]) given[one] = Number(part(one).value);
    if (chat) part("text").value = part("choice").value = "";
    else part("said").replaceChildren();
    part("said").append(make("p", { className: "given", textContent: text }), page);
    say("Writing.", "busy");
    turns.push(turn);
    for (let step; page.childElementCount < MOST && !(step && tokenizer.ends(step.id));) {
      [step] = await Promise.all([ask("write", step ? null : given), wait(PACE)]);
      if (going !== mine) return;
      if (!step) break;
      put(page, turn, step);
    }
    say(`${page.childElementCount} tokens. Point at one to see what else might stand there.`, "good");
  } catch (error) {
    if (going === mine) say(meta ? error.message : `The model cannot run here: ${error.message}.`, "bad");
  }
}

// One more token, shaded by how sure the model was of it
function put(page, turn, step) {
  const word = step.id < tokenizer.specials ? "" : tokenizer.names[step.id];
  const gap = word && tokenizer.gap(turn.content, word), ariaLabel = `${name(step.id)}, ${percent(step.share)}`;
  const token = make("span", { textContent: word, role: "option", ariaLabel, tabIndex: -1, step });
  token.style.setProperty("--sure", step.share);
  turn.content += gap + word;
  page.append(gap, token);
  if (!part("said").matches(":hover, :focus-within")) show(token);
}

// What else might stand at the place of a token: the likeliest, and the one that was drawn
function show(token) {
  if (seen) Object.assign(seen, { ariaSelected: false, tabIndex: -1 });
  seen = Object.assign(token, { ariaSelected: true, tabIndex: 0 });
  const { id, share, likeliest } = token.step, listed = likeliest.some(([other]) => other === id);
  const rows = listed ? likeliest : [...likeliest.slice(0, -1), [id, share]];
  part("likeliest").replaceChildren(...rows.map(([other, share]) => {
    const row = make("li", { className: other === id ? "drawn" : "", style: `--share: ${share}` });
    row.append(make("b", { textContent: name(other) }), percent(share));
    return row;
  }));
  part("asked").textContent = `“${name(id)}” stands here. The model gave it ${percent(share)}.`;
  part("place").hidden = false;
}

// What a visitor does

const look = ({ target }) => target.step && show(target);
for (const kind of ["pointerover", "focusin"]) part("said").addEventListener(kind, look);
part("said").addEventListener("keydown", (event) => {
  const all = [...part("said").querySelectorAll("span")], at = all.indexOf(event.target);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined) return;
  all[to]?.focus();
  event.preventDefault();
});
part("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  write();
});
part("text").addEventListener("input", () => (part("choice").value = ""));
part("choice").addEventListener("change", ({ target }) => (part("text").value = target.value) && write());
part("how").addEventListener("input", ({ target }) => (target.parentNode.dataset.value = target.value));
part("model").addEventListener("change", () => {
  clear();
  meta = null;
  write();
});
part("clear").addEventListener("click", clear);
part("go").addEventListener("click", () => {
  if (!part("told").matches(".busy")) return write();
  going++;
  say("Stopped.");
});

write();
