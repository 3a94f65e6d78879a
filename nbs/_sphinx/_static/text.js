// Text: its ids, and how a model goes on from them, under the names of hrm.core.tokens and hrm.core.generate.
import { forward, softmax, start } from "./hrm.js";
import { generator } from "./random.js";

const WORD = /[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s]/gu, CLOSING = [...".,;:!?)]}'"], OPENING = [..."([{"];
const likeliest = (shares) => [...shares.keys()].sort((a, b) => shares[b] - shares[a]);

// hrm.core.tokens.tokenizer_from: of words or of characters; specials come first, and stand in no text
export function tokenizer_from({ kind, specials, tokens, unknown = "unk" }) {
  const words = kind === "word", names = [...specials, ...tokens], ids = new Map(names.map((name, id) => [name, id]));
  if (!words && kind !== "character" || unknown !== "unk") throw new Error("its tokens are no words or characters");
  const pieces = (text) => (words ? text.match(WORD) ?? [] : [...text]);
  return { kind, names, specials: specials.length, encode: (text) => pieces(text).map((piece) => ids.get(piece)),
    missing: (text) => [...new Set(pieces(text).filter((piece) => !ids.has(piece)))].map((piece) => `“${piece}”`),
    gap: (text, name) => (!words || !text || OPENING.includes(text.at(-1)) || CLOSING.includes(name) ? "" : " "),
    ends: (id) => id < specials.length && names[id] !== "<unk>" }; // of a turn
}

// hrm.core.tokens.encode_chat
export const encode_chat = ({ names, encode }, turns, speaker) => [names.indexOf("<sos>"), ...turns.flatMap((turn) =>
  [names.indexOf(`<${turn.role}>`), ...encode(turn.content), names.indexOf("<eos>")]), names.indexOf(`<${speaker}>`)];

// hrm.core.layers.Cache: what the places so far leave behind, an array for each `extend` of a pass, in that order
export class Cache {
  constructor(positions) { Object.assign(this, { positions, length: 0, place: 0, kept: [] }); }
  advance(places) { Object.assign(this, { length: this.length + places, place: 0 }); }
  extend(rows, K) { // [s, K] of the next places; [length + s, K] of all so far
    const all = (this.kept[this.place++] ??= new Float32Array(this.positions * K)), from = this.length * K;
    all.set(rows, from);
    return all.subarray(0, from + rows.length);
  }
}

// hrm.core.generate.HRMDecoder.feed: the next tokens of a text; logits [S, V] of what follows each of them
export function feed(model, cache, tokens) {
  let carry = start(model, tokens, null, cache), logits;
  for (let at = 0; at < model.config.halt_max_steps; at++) ({ carry, logits } = forward(model, carry));
  cache.advance(tokens.length);
  return logits;
}

// hrm.core.generate.probabilities: what is drawn from
export function probabilities(logits, { temperature, top_p }) {
  const shares = softmax(logits.map((value) => value / Math.max(temperature, 1e-6))), kept = shares.map(() => 0);
  let sum = 0;
  for (const id of likeliest(shares)) {
    sum += kept[id] = shares[id];
    if (sum >= top_p || temperature < 1e-6) break;
  }
  return kept.map((share) => share / sum);
}

// hrm.text.decode.write_on: a function that gives the next token, or nothing where the model has no place for one more.
// An endless text is a hrm.text.decode.Sliding: of a full window the second half is read again, as a new beginning.
export function write_on(model, { ids, endless, never, seed, shown, ...sampling }) {
  const P = model.config.seq_len, random = generator(seed);
  let cache = new Cache(P), read = [], next = ids;
  return () => {
    if (read.length + next.length > P) {
      if (!endless) return null;
      [cache, read, next] = [new Cache(P), [], [...read, ...next].slice(-Math.max(1, P >> 1))];
    }
    const logits = feed(model, cache, next).slice(-model.inner.lm_head.weight.shape[0]).fill(-Infinity, 0, never);
    const shares = softmax(logits.slice()), chances = probabilities(logits, sampling);
    let left = random() * chances.reduce((sum, chance) => sum + chance);
    const id = chances.findIndex((chance) => (left -= chance) < 0);
    [read, next] = [[...read, ...next], [id]];
    return { id, share: shares[id], likeliest: likeliest(shares).slice(0, shown).map((id) => [id, shares[id]]) };
  };
}
