/**
 * A conversation is a tree of messages: answering again or editing adds a sibling, so nothing that was said is lost.
 *
 * conversation: {id, title, named, created, updated, model, system, settings, tools, toolChoice, nodes, chosen}
 * node: {id, parent, role, content, ...}, role "user", "assistant" (toolCalls, status, error, stats, finish) or "tool"
 * (callId, name). `chosen` maps a parent's id ("" for the root) to the child that is shown.
 */
const ROOT = "";

export const SETTINGS = ["temperature", "top_p", "max_tokens", "seed", "presence_penalty", "frequency_penalty"];

/** A random id. Not crypto.randomUUID: it is absent on pages served over plain HTTP from another machine. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(defaults = {}) {
  const now = Date.now();
  return {
    id: newId(),
    title: "",
    named: false,
    created: now,
    updated: now,
    model: defaults.model ?? null,
    system: defaults.system ?? "",
    settings: { ...(defaults.settings ?? {}) },
    tools: defaults.tools ?? "",
    toolChoice: defaults.toolChoice ?? "auto",
    nodes: [],
    chosen: {},
  };
}

/** The messages that are shown, first to last. */
export function path(conversation) {
  const families = new Map();
  for (const node of conversation.nodes) {
    if (families.has(node.parent)) families.get(node.parent).push(node);
    else families.set(node.parent, [node]);
  }
  const shown = [];
  for (let parent = ROOT; ; ) {
    const siblings = families.get(parent);
    if (!siblings) return shown;
    const node = siblings.find((sibling) => sibling.id === conversation.chosen[parent]) ?? siblings.at(-1);
    shown.push(node);
    parent = node.id;
  }
}

/** Add a message below `parent` (a node, or null for the beginning) and show it. */
export function addNode(conversation, parent, fields) {
  const node = { id: newId(), parent: parent?.id ?? ROOT, content: "", at: Date.now(), ...fields };
  conversation.nodes.push(node);
  conversation.chosen[node.parent] = node.id;
  conversation.updated = Date.now();
  if (!conversation.named && node.role === "user" && node.parent === ROOT) conversation.title = titleOf(node.content);
  return node;
}

export function parentOf(conversation, node) {
  return conversation.nodes.find((other) => other.id === node.parent) ?? null;
}

/** Remove a message and everything that was said after it. */
export function removeNode(conversation, node) {
  const gone = new Set([node.id]);
  // Parents come before their children in `nodes`, so one walk finds the whole branch.
  for (const other of conversation.nodes) if (gone.has(other.parent)) gone.add(other.id);
  conversation.nodes = conversation.nodes.filter((other) => !gone.has(other.id));
  for (const id of gone) delete conversation.chosen[id];
  if (conversation.chosen[node.parent] === node.id) delete conversation.chosen[node.parent];
  conversation.updated = Date.now();
}

/** Where a message stands among its versions: {index, count}, and `show(step)` changes which one is shown. */
export function versions(conversation, node) {
  const siblings = conversation.nodes.filter((other) => other.parent === node.parent);
  const index = siblings.indexOf(node);
  const show = (step) => {
    conversation.chosen[node.parent] = siblings[(index + step + siblings.length) % siblings.length].id;
  };
  return { index, count: siblings.length, show };
}

function titleOf(text) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ");
  const letters = Array.from(line);
  return letters.length > 60 ? `${letters.slice(0, 60).join("")}…` : line;
}

/** Messages in the API's form, up to and including `last`. Answers that have neither text nor calls are left out. */
export function apiMessages(conversation, last) {
  const shown = path(conversation);
  const nodes = shown.slice(0, shown.indexOf(last) + 1);
  const answered = new Set(nodes.filter((node) => node.role === "tool").map((node) => node.callId));
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  for (const node of nodes) {
    if (node.role === "user") messages.push({ role: "user", content: node.content });
    else if (node.role === "tool") messages.push({ role: "tool", tool_call_id: node.callId, content: node.content });
    else messages.push(...assistantMessage(node, answered));
  }
  return messages;
}

function assistantMessage(node, answered) {
  const calls = (node.toolCalls ?? []).filter((call) => answered.has(call.id));
  if (!node.content && !calls.length) return [];
  const message = { role: "assistant", content: node.content || null };
  if (calls.length) {
    message.tool_calls = calls.map((call) => ({
      id: call.id,
      type: "function",
      function: { name: call.name, arguments: call.arguments },
    }));
  }
  return [message];
}

/** Calls of an answer that have no result yet, as far as the conversation is shown. */
export function openCalls(conversation, node) {
  const answered = new Set(path(conversation).map((other) => other.callId));
  return (node.toolCalls ?? []).filter((call) => !answered.has(call.id));
}

/** Whether a conversation's title or any message holds the words of a search. */
export function matches(conversation, search) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const texts = [conversation.title, ...conversation.nodes.map((node) => node.content)].map((text) => text.toLowerCase());
  return words.every((word) => texts.some((text) => text.includes(word)));
}
