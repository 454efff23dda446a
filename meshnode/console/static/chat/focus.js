// Where the focus goes when what had it is gone.

/** A ref of what holds a field: that is written into at once. */
export const focused = (box) => box?.querySelector("input, textarea").focus();

/** Back to where questions are written. */
export const toComposer = () => focused(document.querySelector(".chat-composer"));
