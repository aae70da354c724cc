"""What a network may do: compute. A graph is data from a stranger, and TensorFlow runs whatever ops stand in it.

The list says what is allowed and not what is forbidden: an op that is new, or that reads a file through one of its
attributes, is then refused and not overlooked. TensorFlow may run ops while a graph is only imported (it folds constants
for their shapes), so a graph is checked before that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.backbones.graphs import functions_called
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.tensorflow_v1 import tf

_ALLOWED = re.compile(
    r"""
    # tensors: their sources, shapes and parts
    Const | Placeholder(V2|WithDefault)? | Identity(N)? | Snapshot | StopGradient | PreventGradient | NoOp | ControlTrigger | EnsureShape
    | Fill | ZerosLike | OnesLike | Empty | Range | LinSpace | Shape(N)? | Size | Rank | Reshape | Squeeze | ExpandDims | Transpose
    | ConjugateTranspose | Concat(V2|Offset)? | ParallelConcat | Pack | Unpack | Split(V)? | Slice | StridedSlice | Gather(V2|Nd)?
    | (Tensor)?Scatter(Nd|Update|Add|Sub|Min|Max) | Dynamic(Stitch|Partition) | Tile | Pad(V2)? | MirrorPad | Broadcast(To|Args)
    | Reverse(V2|Sequence)? | Roll | Select(V2)? | Where | OneHot | TopK(V2)? | Unique(V2)? | InvertPermutation | Diag(Part)? | ListDiff
    | Matrix(Diag|DiagPart|SetDiag|BandPart)(V2|V3)? | Bitcast | Cast | UnravelIndex | Bucketize | (Dense)?Bincount
    # arithmetic
    | Abs | Add(V2|N)? | AccumulateNV2 | Sub | Mul(NoNan)? | Div(NoNan)? | RealDiv | FloorDiv | TruncateDiv | Mod | FloorMod | TruncateMod
    | Pow | Square | SquaredDifference | Sqrt | Rsqrt | Reciprocal | Inv | Neg | Sign | Exp | Expm1 | Log | Log1p | Xlogy | Xlog1py | Xdivy
    | Ceil | Floor | Round | Rint | Maximum | Minimum | ClipByValue | Erf(c|inv)? | Lgamma | Digamma
    | (Sin|Cos|Tan|Asin|Acos|Atan)h? | Atan2 | Real | Imag | Conj | Complex(Abs)? | Angle | Cum(sum|prod) | CumulativeLogsumexp
    | CheckNumerics(V2)?
    | (Not)?Equal | ApproximateEqual | (Less|Greater)(Equal)? | Logical(And|Or|Not) | Bitwise(And|Or|Xor) | Invert | (Left|Right)Shift
    | Is(Nan|Inf|Finite) | Assert | (Batch)?MatMul(V2|V3)? | Einsum | Cross | L2Loss | I?R?FFT(2D|3D|ND)? | Batch(I)?FFT(2D|3D)?
    | Sum | Prod | Mean | Max | Min | All | Any | ArgMax | ArgMin | EuclideanNorm | (Unsorted)?Segment(Sum|Mean|Prod|Min|Max)(V2)?
    # layers
    | Conv(2D|3D)? | Conv[23]DBackpropInput(V2)? | DepthwiseConv2dNative(BackpropInput)? | Dilation2D | BiasAdd(V1)? | LRN
    | FusedBatchNorm(V2|V3)? | BatchNormWithGlobalNormalization | (Avg|Max)Pool(V2|3D|WithArgmax)? | Fractional(Avg|Max)Pool
    | Fused(ResizeAnd)?PadConv2D | Relu6? | LeakyRelu | S?Elu | Softplus | Softsign | Sigmoid | (Log)?Softmax
    | (Space|Batch|Depth)To(Space|Batch|Depth)(ND)? | Extract(Image|Volume)Patches | LSTMBlockCell | (Block)?LSTM(V2)? | GRUBlockCell
    # images
    | Resize(Area|Bicubic|Bilinear|NearestNeighbor) | ScaleAndTranslate | CropAndResize | ExtractGlimpse(V2)?
    | ImageProjectiveTransformV[23] | Adjust(Contrast(v2)?|Hue|Saturation) | RGBToHSV | HSVToRGB | (Combined)?NonMaxSuppression(V[2345])?
    | Decode(Jpeg|AndCropJpeg|Png|Bmp|Gif|Image|WebP|Base64|Raw) | EncodeBase64 | ExtractJpegShape
    # quantized weights and activations
    | Dequantize | Quantize(V2|AndDequantize(V[234])?) | FakeQuantWithMinMax(Args|Vars|VarsPerChannel)
    | Requantiz(e|ationRange)(PerChannel)? | QuantizeDownAndShrinkRange | Quantized\w+ | Uniform(De|Re)?[Qq]uantize\w*
    # chance: dropout and augmentation, which do nothing when a network is not trained
    | (Stateless)?Random(Uniform|UniformInt|Normal|StandardNormal|Shuffle|Gamma)(FullInt)?(V2|V3)? | (Stateless)?TruncatedNormal(V2)?
    | StatelessRandomGet(Alg|KeyCounter|KeyCounterAlg) | Stateful(Uniform|StandardNormal|TruncatedNormal)(FullInt|Int|V2)?
    | RngReadAndSkip | RngSkip | StatelessSampleDistortedBoundingBox | SampleDistortedBoundingBox(V2)? | Multinomial
    # control flow and variables, in memory
    | (Ref)?(Switch|Merge|Enter|Exit|NextIteration|Identity|Select) | LoopCond | (Stateless)?(If|While|Case) | (Stateful)?PartitionedCall
    | TensorArray\w* | TensorList\w* | EmptyTensorList | Variable(V2|Shape)? | VarHandleOp | ReadVariableOp | VarIsInitializedOp
    | IsVariableInitialized | Assign(Add|Sub)?(VariableOp)? | Resource(Gather(Nd)?|Scatter\w+|Apply\w+) | DestroyResourceOp
    | DisableCopyOnRead | (Mutable|Anonymous|AnonymousMutable)?(Dense)?HashTable(V2)?
    | LookupTable(Find|Insert|Import|Export|Size|Remove)(V2)? | InitializeTable(V2)? | StubResourceHandleOp
    # texts: names of classes, and requests to a server
    | AsString | String(Join|Length|Lower|Upper|Strip|Split(V2)?|ToNumber|ToHashBucket(Fast|Strong)?) | Substr
    | (Static)?Regex(Replace|FullMatch) | Parse(Example|SingleExample)(V2)?
    """,
    re.VERBOSE,
)


def refuse_others(nodes: Iterable[tf.NodeDef], functions: Iterable[tf.FunctionDef]) -> None:
    """Raise UserError where ``nodes``, or those of ``functions`` that they call, hold an op that does more than compute."""
    nodes, functions = list(nodes), list(functions)
    names = {function.signature.name for function in functions}
    for node in [*nodes, *(node for function in functions_called(nodes, functions) for node in function.node_def)]:
        if node.op not in names and not is_allowed(node.op):
            raise UserError(
                f"the model is refused: its node {node.name!r} is a {node.op}, which is none of the ops that only compute; another one may "
                "read or write files, use the network or run Python; freeze or export the network alone"
            )


def is_allowed(op: str) -> bool:
    """Whether an op does nothing but compute."""
    return _ALLOWED.fullmatch(op) is not None
