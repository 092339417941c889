"""From prompts to images and text: the jitted token loops and the pipeline around them."""
