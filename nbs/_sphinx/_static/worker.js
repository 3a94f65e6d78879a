// Runs a model beside the page, a step for each question, so that the page never waits and can change its mind.
import { coordinates, digits } from "./board.js";
import { forward, read, softmax, start } from "./hrm.js";

let model, carry, next;
const answers = {
  read: async (folder) => (model = await read(folder)).meta,

  // One more segment of a new puzzle, or of the one before: likeliest digits, how sure they are, halting probability
  think(tokens) {
    if (tokens) carry = start(model, tokens, coordinates());
    const { carry: next, logits, q_halt } = forward(model, carry), V = logits.length / 81;
    const chances = coordinates().map((_, cell) => softmax(logits.subarray(V * cell, V * cell + V)));
    const sure = chances.map((row) => Math.max(...row)), answer = chances.map((row, cell) => row.indexOf(sure[cell]));
    carry = next;
    return { answer: digits(answer), sure, halt: 1 / (1 + Math.exp(-q_halt)) };
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
