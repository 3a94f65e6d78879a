// Runs the model beside the page, a segment for each question, so that the page never waits and can change its mind.
import { coordinates, digits } from "./board.js";
import { forward, read, softmax, start } from "./hrm.js";

let model, carry;
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
};

onmessage = async ({ data: [question, given], ports: [port] }) => {
  try {
    port.postMessage({ found: await answers[question](given) });
  } catch (error) {
    port.postMessage({ error: error.message });
  }
};
