"""How good images and reconstructions are: PSNR and SSIM, and ShapeEval for the built-in dataset."""
