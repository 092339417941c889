"""3x3 convolutions."""
import jax
from jax import lax
Array = jax.Array
def convolve(x, kernel, stride=1):
    padding = ((1,1),(1,1)) if stride==1 else ((0,1),(0,1))
    return lax.conv_general_dilated(x, kernel, (stride,stride), padding, dimension_numbers=("NHWC","HWIO","NHWC"))
