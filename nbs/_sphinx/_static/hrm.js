// The Hierarchical Reasoning Model in a browser: what a trained model needs of hrm.core, under the same names.
// A tensor is a Float32Array, row after row; S positions, D width, H heads of K = D / H, I and O in and out, V tokens.
const add = (a, b) => a.map((value, at) => value + b[at]);

// hrm.core.checkpoint.read: the weights and the metadata of a folder, from the same two files
export async function read(folder) {
  const [meta, weights] = await Promise.all(["meta.json", "model.safetensors"].map(async (name) => {
    const reply = await fetch(`${folder}/${name}`);
    if (!reply.ok) throw new Error(`${name}: ${reply.status} ${reply.statusText}`);
    return name.endsWith(".json") ? reply.json() : load_file(await reply.arrayBuffer());
  }));
  const { arch } = meta.config, more = ["convolution", "window", "norm_weights", "H_grown", "L_grown", "mlp_t"];
  if (arch.causal) more.push("puzzle_emb_ndim");
  if ({ true: "rope", false: "relations" }[arch.causal] !== arch.pos_encodings || more.some((name) => arch[name]) ||
    arch.halting === "graves" || arch.cross_entropy === "stablemax")
    throw new Error("allowed are plain models of boards and of text");
  const { L_level } = weights.inner; // in hrm.core.trm.TRMInner the H-module is the same network
  return { meta, config: { ...meta.config, ...arch }, inner: { H_level: L_level, ...weights.inner } };
}

// safetensors.torch.load_file: { inner: { H_init: { shape, values }, ... } }, a level for each dot in a name
export function load_file(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true)), tree = {}; // of the header, which is JSON
  const { __metadata__, ...header } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    if (!WIDEN[dtype]) throw new Error(`${name} is ${dtype}; allowed are ${Object.keys(WIDEN).join(", ")}`);
    const parts = name.split("."), last = parts.pop(), branch = parts.reduce((at, part) => (at[part] ??= {}), tree);
    branch[last] = { shape, values: WIDEN[dtype](buffer.slice(8 + length + from, 8 + length + to)) };
  }
  return tree;
}

const WIDEN = {
  F32: (bytes) => new Float32Array(bytes),
  F16: (bytes) => Float32Array.from(new Uint16Array(bytes), half),
  BF16: (bytes) => new Float32Array(Uint32Array.from(new Uint16Array(bytes), (bits) => bits << 16).buffer),
};

function half(bits) { // a sign, five bits of exponent, ten of fraction
  const exponent = (bits >> 10) & 31, fraction = (bits & 1023) / 1024;
  return (bits >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

// hrm.core.layers.CastedLinear: x [S, I] times the transposed weight [O, I]. A tile of two rows and four columns keeps
// its eight sums in registers, and each number read serves several; what overhangs an edge is computed twice.
export function linear(x, { weight: { shape: [O, I], values: w }, bias }) {
  const S = x.length / I, y = new Float32Array(S * O);
  for (let s = 0; s < S; s += 2) {
    const t = Math.min(s + 1, S - 1), x0 = s * I, x1 = t * I;
    for (let o = 0; o < O; o += 4) {
      const p = Math.min(o + 1, O - 1), q = Math.min(o + 2, O - 1), r = Math.min(o + 3, O - 1);
      const w0 = o * I, w1 = p * I, w2 = q * I, w3 = r * I;
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
      for (let i = 0; i < I; i++) {
        const a = x[x0 + i], b = x[x1 + i], c = w[w0 + i], d = w[w1 + i], e = w[w2 + i], f = w[w3 + i];
        a0 += a * c, a1 += a * d, a2 += a * e, a3 += a * f, b0 += b * c, b1 += b * d, b2 += b * e, b3 += b * f;
      }
      y[s * O + o] = a0, y[s * O + p] = a1, y[s * O + q] = a2, y[s * O + r] = a3;
      y[t * O + o] = b0, y[t * O + p] = b1, y[t * O + q] = b2, y[t * O + r] = b3;
    }
  }
  return bias ? y.map((value, at) => value + bias.values[at % O]) : y;
}

// hrm.core.layers.rms_norm: rows of width D, in place
export function rms_norm(x, D, eps) {
  for (let from = 0; from < x.length; from += D) {
    const row = x.subarray(from, from + D), scale = 1 / Math.sqrt(row.reduce((sum, y) => sum + y * y, 0) / D + eps);
    for (let i = 0; i < D; i++) row[i] *= scale;
  }
  return x;
}

// torch.softmax of one row, in place
export function softmax(row) {
  let most = row.reduce((a, b) => Math.max(a, b)), sum = 0;
  for (let i = 0; i < row.length; i++) sum += row[i] = Math.exp(row[i] - most);
  for (let i = 0; i < row.length; i++) row[i] /= sum;
  return row;
}

// hrm.core.layers.agreement: which coordinates agree, as the kind of a pair. Kinds are lists: for each position those
// that it sees, as [position, kind]; a pair that is hidden, there a kind below 0, stands in no list.
export const agreement = (coordinates) => coordinates.map((a) => coordinates.map((b, at) =>
  [at, a.reduce((sum, value, f) => sum + (value === b[f] ? 2 ** f : 0), 0)]));

// hrm.core.layers.relation_classes: what each position sees, with the number of the relation instead of one-hot
export function relation_classes(kinds, prefix) {
  const before = (many) => Array.from({ length: many }, (_, at) => [at, -1]), all = before(prefix + kinds.length);
  const inside = kinds.map((row) => [...before(prefix), ...row.map(([at, kind]) => [prefix + at, kind])]);
  const rows = [...before(prefix).map(() => all), ...inside];
  const found = [...new Set(rows.flatMap((row) => row.map(([, kind]) => kind)))].sort((a, b) => a - b);
  return rows.map((row) => ({ keys: Uint16Array.from(row, ([at]) => at),
    classes: Uint8Array.from(row, ([, kind]) => found.indexOf(kind)) }));
}

// hrm.core.layers.Rotary: rows of width K, those of the places from `start` on, each pair turned by an angle; in place
export function rotary(x, K, start, theta) {
  for (let from = 0; from < x.length; from += K)
    for (let k = 0, a = from, b = from + K / 2; k < K / 2; k++, a++, b++) {
      const angle = (start + from / K) / theta ** (2 * k / K), cos = Math.cos(angle), sin = Math.sin(angle);
      [x[a], x[b]] = [x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin];
    }
  return x;
}

// hrm.core.layers.Attention: how much one position takes from another that it sees depends on query, key and their
// relation; with a cache on their places instead, and it sees those before itself: T positions, the last S are new
export function attention({ qkv_proj, o_proj, relation_bias }, x, { num_heads: H, relations, cache, rope_theta }) {
  const D = o_proj.weight.shape[0], K = D / H, S = x.length / D, start = cache?.length ?? 0;
  const out = new Float32Array(S * D), scores = new Float32Array(start + S);
  const matrix = (values) => ({ weight: { shape: [K, D], values } });
  for (let h = 0; h < H; h++) {
    const bias = relation_bias?.values.subarray(h * relation_bias.shape[1]), from = (row) => (row * D + h * K) * D;
    let [query, key, value] = [0, 1, 2].map((row) =>
      linear(x, matrix(qkv_proj.weight.values.subarray(from(row), from(row) + K * D)))); // [S, K]
    if (cache) [query, key] = [query, key].map((rows) => rotary(rows, K, start, rope_theta));
    if (cache) [key, value] = [key, value].map((rows) => cache.extend(rows, K)); // [T, K]
    for (let s = 0; s < S; s++) {
      const { keys, classes } = relations?.[s] ?? {}, row = scores.subarray(0, keys ? keys.length : start + s + 1);
      for (let at = 0, q = s * K; at < row.length; at++) {
        const t = (keys ? keys[at] : at) * K;
        let sum = 0;
        for (let k = 0; k < K; k++) sum += query[q + k] * key[t + k];
        row[at] = sum / Math.sqrt(K) + (bias ? bias[classes[at]] : 0);
      }
      softmax(row);
      for (let at = 0, to = s * D + h * K; at < row.length; at++) {
        const t = (keys ? keys[at] : at) * K, share = row[at];
        for (let k = 0; k < K; k++) out[to + k] += share * value[t + k];
      }
    }
  }
  return linear(out, o_proj);
}

// hrm.core.layers.SwiGLU: down(silu(gate(x)) * up(x)), gate and up side by side in one matrix
export function swiglu({ gate_up_proj, down_proj }, x) {
  const I = down_proj.weight.shape[1], both = linear(x, gate_up_proj), inner = new Float32Array(both.length / 2);
  for (let at = 0; at < inner.length; at++) {
    const gate = 2 * at - at % I; // where it stands: whole rows before it are twice as long
    inner[at] = both[gate] / (1 + Math.exp(-both[gate])) * both[gate + I];
  }
  return linear(inner, down_proj);
}

// hrm.core.layers.Block: attention, then SwiGLU, each added to what came in and normed
export function block({ self_attn, mlp }, x, context) {
  const { hidden_size: D, rms_norm_eps: eps } = context;
  x = rms_norm(add(x, attention(self_attn, x, context)), D, eps);
  return rms_norm(add(x, swiglu(mlp, x)), D, eps);
}

// hrm.core.recurrence.Level: the injection is added to the state once, then the blocks follow
export function level({ layers }, state, injection, context) {
  return Object.values(layers).reduce((x, layer) => block(layer, x, context), add(state, injection));
}

// hrm.core.recurrence.recur: one segment, in which the fast module takes L_cycles steps for one of the slow module
export function recur({ H_level, L_level }, z_H, z_L, x, context) {
  for (let high = 0; high < context.H_cycles; high++) {
    for (let low = 0; low < context.L_cycles; low++) z_L = level(L_level, z_L, add(z_H, x), context);
    z_H = level(H_level, z_H, z_L, context);
  }
  return [z_H, z_L];
}

// hrm.core.hrm.HRMInner.cycles and hrm.core.trm.TRMInner.cycles: on two states, or as many steps on a single one
export function cycles(inner, z_H, z_L, x, context) {
  if (context.latents !== 1) return recur(inner, z_H, z_L, x, context);
  for (let left = context.H_cycles * (context.L_cycles + 1); left; left--) z_H = level(inner.L_level, z_H, x, context);
  return [z_H, z_L];
}

// hrm.core.hrm.HRMInner.embed: the puzzle embedding in front, a row of the table for each token, all times sqrt(D)
export function embed({ embed_tokens: { embedding_weight: table }, puzzle_emb }, tokens, prefix, D) {
  const x = new Float32Array((prefix + tokens.length) * D);
  if (prefix) x.set(puzzle_emb.weights.values.subarray(0, puzzle_emb.weights.shape[1]));
  tokens.forEach((id, at) => x.set(table.values.subarray(id * D, id * D + D), (prefix + at) * D));
  return x.map((value) => value * Math.sqrt(D));
}

// hrm.core.hrm.HRM.start: the carry of a new board, or of the next places of a text: its input, and the initial states
export function start({ inner, config }, tokens, kinds, cache) {
  const D = config.hidden_size, prefix = config.puzzle_emb_len || Math.ceil(config.puzzle_emb_ndim / D);
  const context = { ...config, prefix, cache, relations: kinds && relation_classes(kinds, prefix) };
  const x = embed(inner, tokens, prefix, D);
  const [z_H, z_L] = [inner.H_init, inner.L_init].map(({ values }) => x.map((_, at) => values[at % D]));
  return { z_H, z_L, x, context };
}

// hrm.core.hrm.HRM.forward: one segment; the next carry, logits [S, V] and q_halt
export function forward({ inner }, { z_H, z_L, x, context }) {
  const D = context.hidden_size, read = context.causal ? z_H.length - D : 0; // whose state the halting head sees
  [z_H, z_L] = cycles(inner, z_H, z_L, x, context);
  const logits = linear(z_H.subarray(context.prefix * D), inner.lm_head);
  return { carry: { z_H, z_L, x, context }, logits, q_halt: linear(z_H.subarray(read, read + D), inner.q_head)[0] };
}
