"""What the image processors of transformers do where a preprocessor_config.json does not say."""

from typing import Any

Tree = dict[str, Any]
# By the image processor of transformers, what it does where the file does not say.
HALF, CLIP_MEAN, CLIP_STD = [0.5], [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SQUARE: Any = {
    "size": 224,
    "default_to_square": True,
    "do_center_crop": False,
    "image_mean": HALF,
    "image_std": HALF,
}
CROPPED: Any = {
    "size": 224,
    "default_to_square": False,
    "do_center_crop": True,
    "crop_size": 224,
    "resample": 3,
}
PROCESSORS: dict[str, Tree] = {
    "ViT": SQUARE | {"resample": 2},
    "Siglip": SQUARE | {"resample": 3},
    "DeiT": SQUARE | {"size": 256, "do_center_crop": True, "crop_size": 224, "resample": 3},
    "Bit": CROPPED | {"image_mean": CLIP_MEAN, "image_std": CLIP_STD},
    "CLIP": CROPPED | {"image_mean": CLIP_MEAN, "image_std": CLIP_STD},
    "Siglip2": {
        "image_mean": HALF,
        "image_std": HALF,
        "resample": 2,
        "patch_size": 16,
        "max_num_patches": 256,
    },
    "DINOv3ViT": SQUARE
    | {"resample": 2, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
}
COMMON: Any = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
# Keys that say nothing of pixels, and `do_convert_rgb`, which for other images than RGB is always done here.
NO_PIXELS = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "auto_map",
    "_valid_processor_keys",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
    "do_convert_rgb",
}
