import torch
from timm import create_model

from vision.fold import fold_batchnorm


def test_a_folded_network_gives_the_same_maps_without_batch_norms():
    torch.manual_seed(0)
    network = create_model("tf_efficientnet_lite0", features_only=True).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # fresh ones are the identity: make them do something
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    picture = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = network(picture)
        fold_batchnorm(network)
        got = network(picture)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
