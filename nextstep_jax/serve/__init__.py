"""Generation over HTTP: OpenAI's images and chat routes, and a page to play with the model. Never knows training.

`requests` checks what clients send, `worker` owns the device and runs jobs, `kept` holds the last images, `preview` colors
tokens before they are decoded, `replies` and `app` answer, and `static/` holds the page.
"""
