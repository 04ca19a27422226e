/** The server's OpenAI-compatible interface. Addresses are relative, so that the page works behind a proxy's prefix. */
import { EventParser } from "./sse.js";

/**
 * Why a request failed. `kind` decides what the page offers: "unauthorized", "busy", "context", "network",
 * "interrupted", "request" (the server refused it) or "server" (the server failed).
 */
export class ApiError extends Error {
  constructor(kind, message, { status = null, code = null, retryAfter = null } = {}) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** Ids of the models that the server has. */
export async function listModels(key) {
  const response = await request("v1/models", { headers: headers(key) });
  const body = await response.json();
  return body.data.map((model) => String(model.id));
}

/** Send a chat request; yield the stream's chunks as they come. Throws ApiError, or the signal's AbortError. */
export async function* streamChat(body, key, signal) {
  const options = { method: "POST", headers: headers(key), body: JSON.stringify(body), signal };
  const response = await request("v1/chat/completions", options);
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  for (;;) {
    const { done, value } = await read(reader, signal);
    if (done) throw new ApiError("interrupted", "");
    for (const data of parser.feed(decoder.decode(value, { stream: true }))) {
      if (data === "[DONE]") return;
      const chunk = parsed(data);
      if (chunk.error) throw refusal(response.status, chunk, response.headers);
      yield chunk;
    }
  }
}

async function request(address, options) {
  let response;
  try {
    response = await fetch(address, { ...options, credentials: "same-origin", cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError("network", "");
  }
  if (response.ok) return response;
  throw refusal(response.status, parsed(await response.text().catch(() => "")), response.headers);
}

async function read(reader, signal) {
  try {
    return await reader.read();
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError("interrupted", "");
  }
}

function headers(key) {
  const all = { "Content-Type": "application/json" };
  if (key) all.Authorization = `Bearer ${key}`;
  return all;
}

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return { text };
  }
}

function refusal(status, body, responseHeaders) {
  const error = typeof body.error === "object" && body.error ? body.error : {};
  const message = String(error.message ?? body.detail ?? body.text ?? "").slice(0, 2000);
  const code = error.code ?? null;
  const seconds = retryAfter(responseHeaders);
  return new ApiError(kindOf(status, code, seconds !== null), message, { status, code, retryAfter: seconds });
}

function kindOf(status, code, waits) {
  if (status === 401) return "unauthorized";
  if (status === 429 || (status === 503 && waits)) return "busy";
  if (code === "context_length_exceeded") return "context";
  return status >= 400 && status < 500 ? "request" : "server";
}

/** Seconds to wait, from a Retry-After header in either of its two forms; null without one. */
function retryAfter(responseHeaders) {
  const text = responseHeaders.get("Retry-After");
  if (!text) return null;
  const seconds = /^\d+$/.test(text.trim()) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.min(Math.max(Math.ceil(seconds), 1), 600) : null;
}
