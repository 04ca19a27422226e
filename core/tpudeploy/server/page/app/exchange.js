/** Conversations as files: what is exported can be imported again, here or in another browser. */
import { SETTINGS, addNode, newConversation, newId } from "./conversation.js";

const FORMAT = "tpudeploy-conversations";
const ROLES = ["user", "assistant", "tool"];

/** The text of a file with these conversations. */
export function exported(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 2);
}

/**
 * The conversations of a file's text: an export, or a list of messages in OpenAI's form. Each gets a new id, so that
 * nothing is overwritten. Throws an Error that says what is wrong.
 */
export function imported(text) {
  const file = JSON.parse(text);
  const messages = Array.isArray(file) ? file : file?.messages;
  if (Array.isArray(messages)) return [fromMessages(messages)];
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new Error(`format: ${FORMAT}`);
  return file.conversations.map(conversationFrom);
}

function conversationFrom(raw, index) {
  const where = `conversations[${index}]`;
  check(raw && typeof raw === "object" && Array.isArray(raw.nodes), where);
  const made = newConversation({ system: text(raw.system), tools: text(raw.tools), model: raw.model ? text(raw.model) : null });
  made.title = text(raw.title).slice(0, 200);
  made.named = raw.named === true;
  made.created = time(raw.created);
  made.updated = time(raw.updated);
  if (["auto", "none", "required"].includes(raw.toolChoice)) made.toolChoice = raw.toolChoice;
  for (const name of SETTINGS) if (Number.isFinite(raw.settings?.[name])) made.settings[name] = raw.settings[name];
  const ids = new Map([["", ""]]);
  raw.nodes.forEach((node, at) => made.nodes.push(nodeFrom(node, ids, `${where}.nodes[${at}]`)));
  for (const [parent, child] of Object.entries(raw.chosen ?? {})) {
    if (ids.has(parent) && ids.has(child)) made.chosen[ids.get(parent)] = ids.get(child);
  }
  return made;
}

function nodeFrom(raw, ids, where) {
  check(raw && ROLES.includes(raw.role) && typeof raw.content === "string", where);
  // A parent comes before its children: that also rules out cycles.
  check(typeof raw.id === "string" && raw.id !== "" && !ids.has(raw.id) && ids.has(raw.parent), where);
  const node = { id: newId(), parent: ids.get(raw.parent), role: raw.role, content: raw.content, at: time(raw.at) };
  ids.set(raw.id, node.id);
  if (raw.role === "tool") Object.assign(node, { callId: text(raw.callId), name: text(raw.name) });
  if (raw.role === "assistant") Object.assign(node, answerFields(raw));
  return node;
}

function answerFields(raw) {
  const fields = { status: raw.status === "stopped" ? "stopped" : "done" };
  fields.toolCalls = (Array.isArray(raw.toolCalls) ? raw.toolCalls : []).map((call) => ({
    id: text(call?.id),
    name: text(call?.name),
    arguments: text(call?.arguments),
  }));
  if (raw.finish) fields.finish = text(raw.finish);
  fields.stats = {};
  for (const name of ["total", "first", "prompt", "completion", "rate"]) {
    if (Number.isFinite(raw.stats?.[name])) fields.stats[name] = raw.stats[name];
  }
  return fields;
}

function fromMessages(messages) {
  const made = newConversation();
  let parent = null;
  messages.forEach((message, index) => {
    const where = `messages[${index}]`;
    check(message && typeof message === "object", where);
    const content = text(message.content);
    if (message.role === "system") {
      made.system = content;
      return;
    }
    check(ROLES.includes(message.role), where);
    const fields = { role: message.role, content };
    if (message.role === "tool") fields.callId = text(message.tool_call_id);
    if (message.role === "assistant") fields.status = "done";
    if (message.role === "assistant" && Array.isArray(message.tool_calls)) {
      fields.toolCalls = message.tool_calls.map((call) => ({
        id: text(call?.id),
        name: text(call?.function?.name),
        arguments: text(call?.function?.arguments),
      }));
    }
    parent = addNode(made, parent, fields);
  });
  return made;
}

function check(right, where) {
  if (!right) throw new Error(where);
}

function text(value) {
  return typeof value === "string" ? value : "";
}

function time(value) {
  return Number.isFinite(value) && value > 0 ? value : Date.now();
}
