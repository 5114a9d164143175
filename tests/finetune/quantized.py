"""`decoder_kwargs` that quantize, as YAML has them."""


def torchao(kind, **fields):
    """Of a config of torchao's."""
    described = {"default": {"_type": kind, "_version": 2, "_data": fields}}
    return {"quantization_config": {"quant_method": "torchao", "quant_type": described}}


INT8 = torchao("Int8WeightOnlyConfig")
INT4 = torchao(
    "IntxWeightOnlyConfig",
    weight_dtype={"_type": "torch.dtype", "_data": "int4"},
    granularity={"_type": "PerGroup", "_version": 1, "_data": {"group_size": 32}},
)
PLAIN = {"quantization_config": None}
