"""Scores of images and reconstructions: PSNR and SSIM, and ShapeEval on the built-in dataset."""
