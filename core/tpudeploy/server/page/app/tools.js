/** Tool schemas, as the user pasted them into the settings. */

/** {value: a list in OpenAI's form} or {error: a key of the interface's texts, detail}. Empty text is an empty list. */
export function toolsOf(text) {
  if (!text.trim()) return { value: [] };
  let list;
  try {
    list = JSON.parse(text);
  } catch (error) {
    return { error: "toolsNotJson", detail: error.message };
  }
  if (!Array.isArray(list)) list = [list];
  const value = list.map((tool) => (tool && tool.function ? tool : { type: "function", function: tool }));
  const wrong = value.findIndex((tool) => typeof tool.function !== "object" || typeof tool.function?.name !== "string");
  return wrong < 0 ? { value } : { error: "toolsNotNamed", detail: String(wrong + 1) };
}

/** A tool that the demo models know. */
export const EXAMPLE = JSON.stringify(
  [
    {
      type: "function",
      function: {
        name: "get_weather",
        description: "Look up the weather of a city",
        parameters: {
          type: "object",
          properties: {
            city: { type: "string", description: "The city" },
            days: { type: "integer", description: "Number of days" },
          },
          required: ["city"],
        },
      },
    },
  ],
  null,
  2,
);

/** Arguments as readable JSON, or as they came if the model wrote something else. */
export function readable(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
