// Runs a model beside the page, a step for each question, so that the page never waits and can change its mind.
import { forward, read, softmax, start } from "./hrm.js";

let model, carry, next;
const answers = {
  read: async (folder) => (model = await read(folder)).meta,

  // One more segment of a new board, or of the one before: the likeliest token of each cell, how sure it is, how likely
  // the one that is asked for is there, and the halting probability
  think({ tokens, kinds, asked = 0 }) {
    if (tokens) carry = start(model, tokens, kinds);
    const { carry: next, logits, q_halt } = forward(model, carry), V = model.inner.lm_head.weight.shape[0];
    const chances = Array.from({ length: logits.length / V }, (_, at) => softmax(logits.subarray(V * at, V * at + V)));
    const sure = chances.map((row) => Math.max(...row)), answer = chances.map((row, at) => row.indexOf(sure[at]));
    carry = next;
    return { answer, sure, likely: chances.map((row) => row[asked]), halt: 1 / (1 + Math.exp(-q_halt)) };
  },

  // One more token of a new text, or of the one before
  async write(beginning) {
    if (beginning) next = (await import("./text.js")).write_on(model, beginning); // a board needs none of it
    return next();
  },
};

let last = Promise.resolve(); // one after the other, so that no question meets a model that is being replaced
onmessage = ({ data: [question, given] }) => {
  last = last.then(() => answers[question](given))
    .then((found) => postMessage(["resolve", found]), (error) => postMessage(["reject", error]));
};
