"""Image-text pairs: filtered, deduplicated, captioned anew in English and Chinese (paper section 5.1.2).

    nextstep-jax data curate SOURCE OUT --config curate_pairs --endpoint openai:http://localhost:8000/v1#MODEL

The endpoint is any that speaks OpenAI's chat completions, with a model that sees images; it judges watermarks, aesthetics and
alignment of text and image, and writes captions. OUT/pretrain, OUT/anneal and OUT/sft are datasets for the stages of the same
names, by the same measurements and stricter thresholds. The paper does not give its thresholds; these are starting points, to
be set by looking at OUT/report.html.

`:embedder` measures alignment and aesthetics by embeddings, with a CLIP or SigLIP of yours in place of the endpoint:

    nextstep-jax data curate SOURCE OUT --config curate_pairs:embedder --endpoint openai:http://localhost:8000/v1#MODEL \
        --config.signals.alignment.embedder=onnx:FOLDER --config.signals.aesthetics.embedder=onnx:FOLDER \
        --config.signals.aesthetics.head=HEAD.onnx

Its thresholds are on the scales of CLIP ViT-L/14's cosine and of the aesthetic head that LAION trained for it (1 to 10).
`:laptop` needs no endpoint, and takes small images.
"""

from ml_collections import ConfigDict

from nextstep_jax.data.curation.recipe import require_form


def get_config(argument=None):
    require_form(argument, "laptop", "embedder")
    laptop = argument == "laptop"
    config = ConfigDict({"name": "pairs", "signals": {}, "duplicates": {}, "cuts": {}, "transforms": {}})
    config.sample_kinds = ("pair",)
    config.signals.size = {}
    config.signals.sharpness = {}
    config.signals.ocr = {}
    config.signals.nsfw = {}
    config.signals.perceptual_hash = {}
    config.duplicates.perceptual_hash = {"max_distance": 6, "keep": "sharpness.laplacian"}
    if laptop:
        config.cuts.pretrain = ("sharpness.laplacian >= 20", "ocr.area <= 0.5", "nsfw.score < 0.5")
        config.cuts.anneal = ("sharpness.laplacian >= 60", "ocr.area <= 0.3", "nsfw.score < 0.3")
        return config
    config.signals.watermark = {
        "kind": "judgement",
        "question": "Is there a watermark, a logo of a stock agency or a signature on this image?",
        "answer": "yes_no",
        "endpoint": "",
    }
    config.signals.aesthetics = {
        "kind": "judgement",
        "question": "How beautiful and well composed is this image, 0 being worthless and 10 the work of a master?",
        "answer": "scale",
        "endpoint": "",
    }
    config.signals.alignment = {
        "kind": "judgement",
        "question": "How well does this text describe the image, 0 being not at all and 10 perfectly? Text: {text}",
        "answer": "scale",
        "endpoint": "",
    }
    aesthetics, alignment = (0.3, 0.6, 0.8), (0.4, 0.7, 0.8)
    if argument == "embedder":
        config.signals.aesthetics = {"embedder": "", "head": ""}
        config.signals.alignment = {"embedder": ""}
        aesthetics, alignment = (4.5, 5.5, 6.0), (0.2, 0.24, 0.26)
    safe = ("nsfw.score < 0.3", "watermark.score == 0")
    config.cuts.pretrain = (
        *("size.min_side >= 256", "size.aspect <= 4", "sharpness.laplacian >= 40", "sharpness.blockiness <= 2"),
        *("ocr.area <= 0.5", f"aesthetics.score >= {aesthetics[0]}", f"alignment.score >= {alignment[0]}", *safe),
    )
    config.cuts.anneal = (
        *("size.min_side >= 512", "size.aspect <= 3", "sharpness.laplacian >= 100", "sharpness.blockiness <= 1.4"),
        *("ocr.area <= 0.3", f"aesthetics.score >= {aesthetics[1]}", f"alignment.score >= {alignment[1]}", *safe),
    )
    config.cuts.sft = (
        *("size.min_side >= 512", "size.aspect <= 3", "sharpness.laplacian >= 150", "sharpness.blockiness <= 1.2"),
        *("ocr.area <= 0.2", f"aesthetics.score >= {aesthetics[2]}", f"alignment.score >= {alignment[2]}", *safe),
    )
    config.transforms.recaption = {"endpoint": "", "languages": ("en", "zh"), "styles": ("dense", "short")}
    return config
