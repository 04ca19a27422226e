"""The ids that are no text: SentencePiece's end of sentence, and the nine that follow its pieces, in their order."""

EOS_ID = 2

SPECIAL_TOKENS = (
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "sop",
    "eop",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
