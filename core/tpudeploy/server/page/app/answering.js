/** One answer as it comes: reads the stream into a message of a conversation. */
import { ApiError, streamChat } from "./api.js";

/** Pieces that came as one say nothing about speed. */
const LEAST_SECONDS = 0.01;

export class Answering {
  #abort = new AbortController();
  #calls = [];

  /** `node` is the assistant's message, still empty; `changed(what)` is told "text", "calls" or "end". */
  constructor(node, changed) {
    this.node = node;
    this.changed = changed;
    this.started = performance.now();
    this.firstToken = null;
  }

  stop() {
    this.#abort.abort();
  }

  /** Read the whole answer to the request that `prepare` makes. Never throws: what went wrong is in the node. */
  async run(prepare) {
    const { node } = this;
    try {
      const { body, key } = await prepare();
      for await (const chunk of streamChat(body, key, this.#abort.signal)) this.#take(chunk);
      node.status = "done";
    } catch (error) {
      this.#fail(error);
    }
    node.toolCalls = this.#calls.filter((call) => call && call.name);
    this.#measure();
    this.changed("end");
  }

  #take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    if (choice.finish_reason) this.node.finish = choice.finish_reason;
    const { content, tool_calls: calls } = choice.delta ?? {};
    if (!content && !calls?.length) return;
    this.lastToken = performance.now();
    this.firstToken ??= this.lastToken;
    if (content) {
      this.node.content += content;
      this.changed("text");
    }
    for (const call of calls ?? []) this.#takeCall(call);
    if (calls?.length) this.changed("calls");
  }

  #takeCall({ index = 0, id, function: part = {} }) {
    const call = (this.#calls[index] ??= { id: "", name: "", arguments: "" });
    if (id) call.id = id;
    call.name += part.name ?? "";
    call.arguments += part.arguments ?? "";
    this.node.toolCalls = this.#calls.filter(Boolean);
  }

  #fail(error) {
    const { node } = this;
    if (this.#abort.signal.aborted) {
      node.status = "stopped";
      return;
    }
    node.status = "failed";
    const { kind = "server", message = "", status = null, code = null, retryAfter = null } = error;
    const text = error instanceof ApiError ? message : String(error);
    node.error = { kind, message: text, status, code, retryAfter };
  }

  #measure() {
    const { node, usage } = this;
    const now = performance.now();
    node.stats = { total: now - this.started };
    if (this.firstToken !== null) node.stats.first = this.firstToken - this.started;
    if (!usage) return;
    node.stats.prompt = usage.prompt_tokens;
    node.stats.completion = usage.completion_tokens;
    const seconds = (this.lastToken - this.firstToken) / 1000;
    // The first token's time is the prompt's; the others' are what a token costs.
    if (usage.completion_tokens > 1 && seconds > LEAST_SECONDS) node.stats.rate = (usage.completion_tokens - 1) / seconds;
  }
}
