"""The feature cache returns what the vision encoder computes, and is used only where that is constant."""

import os
import shutil
from collections import namedtuple

import pytest
import torch

from medcap.data.captions import CaptionCollator
from medcap.data.images import DIGEST_BYTES, image_digest, with_pixel_values
from medcap.data.load import load_data
from medcap.modeling import feature_cache
from medcap.modeling.families import family_of
from medcap.modeling.feature_cache import FeatureEncoder, caching_obstacle, feature_key, open_cache
from medcap.modeling.feature_store import FeatureCache, stored_caches
from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora

SHAPE = (5, 4)


def constant_features(*numbers):
    return torch.stack([torch.full(SHAPE, float(number)) for number in numbers])


def test_cached_features_do_not_depend_on_the_batch(tmp_path):
    """In a resumed run, fewer images of a batch are new."""

    class BatchSize:
        base = torch.nn.Linear(1, 1)
        base.device = torch.device("cpu")  # type: ignore[assignment]

        def encode(self, pixels):
            values = pixels.mean((1, 2, 3)) + 100 * len(pixels)
            return values[:, None, None].expand(-1, *SHAPE)

    pixels = constant_features(*range(6))[:, None]
    caches = (FeatureCache(tmp_path / name, SHAPE, torch.float32) for name in ("a", "b"))
    first, second = (FeatureEncoder(BatchSize(), cache) for cache in caches)
    features = first({"pixel_values": pixels})
    assert torch.equal(features, torch.cat([second({"pixel_values": part}) for part in pixels.split((1, 2, 3))]))
    assert features[0, 0, 0] == 100


class OnGpu(torch.Tensor):
    """A tensor that, like those of CUDA, has no array."""

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_digests_of_a_batch_on_a_gpu_are_read(tmp_path):
    """The Trainer moves all tensors of a batch to its device."""

    class Means:
        base = torch.nn.Linear(1, 1)
        base.device = torch.device("cpu")  # type: ignore[assignment]

        def encode(self, pixels):
            return pixels.mean((1, 2, 3))[:, None, None].expand(-1, *SHAPE)

    cache = FeatureCache(tmp_path, SHAPE, torch.float32)
    digests = torch.arange(2 * DIGEST_BYTES, dtype=torch.uint8).view(2, DIGEST_BYTES)
    batch = {"pixel_values": constant_features(3, 5)[:, None], "digests": digests.as_subclass(OnGpu)}
    FeatureEncoder(Means(), cache)(batch)
    cache.flush()
    assert torch.equal(cache.get(bytes(digests[1].tolist())), constant_features(5)[0])


def batches(model, processor, rows, cache):
    images = with_pixel_values(rows.select_columns(["image_id", "image"]), processor.image_processor, cache.get)
    collate = CaptionCollator(processor.tokenizer, family_of(model).first_token_id, 8)
    return [collate([images[row] for row in part]) for part in ((0, 1, 2), (3, 1, 4), (0, 3, 5))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_equal_those_of_the_vision_encoder(tiny_base, phantoms, tmp_path, dtype):
    """For batches of new, of cached, and of both kinds of images."""
    model, processor = load_base(str(tiny_base), dtype=dtype)
    model.eval().requires_grad_(False)
    rows = load_data(phantoms, splits=["valid"])["valid"]
    cache = open_cache(str(tmp_path), family_of(model, processor), dtype, len(rows))
    plain = with_pixel_values(rows, processor.image_processor)
    with torch.no_grad():
        expected = torch.cat(
            [model.vision_model(plain[row]["pixel_values"][None]).last_hidden_state for row in range(6)]
        )
    encode = FeatureEncoder(family_of(model, processor), cache)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    for part, batch in zip(((0, 1, 2), (3, 1, 4), (0, 3, 5)), batches(model, processor, rows, cache), strict=True):
        torch.testing.assert_close(encode(batch), expected[list(part)], **close)
        cache.flush()
    cached = batches(model, processor, rows, cache)
    assert not any("pixel_values" in batch for batch in cached)
    torch.testing.assert_close(encode(cached[1]), expected[[3, 1, 4]], **close)
    assert len(cache) == 6


def test_image_digest_depends_on_the_content_only(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    path = str(tmp_path / "a")
    assert image_digest(path) == image_digest({"bytes": None, "path": str(tmp_path / "b")}) == image_digest(b"one")
    before = os.stat(path)
    (tmp_path / "a").write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert image_digest(path) != image_digest(b"one")


def test_feature_key_depends_on_everything_that_changes_features(tiny_base, monkeypatch):
    def key(size=32, dtype=torch.float32, change=None):
        model, processor = load_base(str(tiny_base), image_size=size)
        if change:
            change(model, processor)
        return feature_key(family_of(model, processor), dtype)

    def weight(model, processor):
        with torch.no_grad():
            model.vision_model.encoder.layers[1].mlp.fc2.bias[3] += 1e-6

    def interpolation(model, processor):
        processor.image_processor.resample = 2

    keys = [key(), key(size=48), key(dtype=torch.bfloat16), key(change=weight), key(change=interpolation)]
    monkeypatch.setattr(feature_cache.PIL, "__version__", "0.1")
    assert len({*keys, key()}) == 6
    monkeypatch.undo()
    assert key() == keys[0]


def test_feature_key_does_not_depend_on_the_decoder(blip):
    before = feature_key(family_of(*blip), torch.float32)
    with torch.no_grad():
        blip[0].text_decoder.cls.predictions.bias.add_(1)
    assert feature_key(family_of(*blip), torch.float32) == before


def test_a_trained_vision_encoder_prevents_caching(blip, caplog, tmp_path):
    adapted = add_lora(blip[0], targets="text-and-vision-attention", r=4, alpha=8, dropout=0.0)
    family = family_of(*blip)
    assert open_cache("auto", family, torch.float32, 9) is None
    assert caplog.messages == [
        "no feature cache: modules that compute the features are trained, such as the vision encoder"
    ]
    with pytest.raises(ValueError, match=r"feature_cache: .* cannot be used: modules that compute the features"):
        open_cache(str(tmp_path), family, torch.float32, 9)
    adapted.requires_grad_(False)
    assert caching_obstacle(family) == "the adapter changes the vision encoder"


def test_attention_dropout_prevents_caching(blip):
    blip[0].requires_grad_(False)
    assert caching_obstacle(family_of(*blip)) == ""
    blip[0].config.vision_config.attention_dropout = 0.1
    assert caching_obstacle(family_of(*blip)) == "the vision encoder uses attention dropout"


def test_off_opens_no_cache(blip):
    assert open_cache("off", family_of(*blip), torch.float32, 9) is None


def test_features_must_fit_on_the_disk(blip, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    blip[0].requires_grad_(False)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 0, 10**6))
    limit = int(0.8 * 10**6 // (17 * 32 * 4))  # images
    assert open_cache("auto", family_of(*blip), torch.float32, limit) is not None
    assert open_cache("auto", family_of(*blip), torch.float32, limit + 1) is None
    assert "images need 0.0 GB more" in caplog.text
    with pytest.raises(ValueError, match="set it to another folder, auto or off"):
        open_cache(str(tmp_path), family_of(*blip), torch.float32, limit + 1)


def test_a_limit_below_the_images_caches_a_part(blip, tmp_path):
    blip[0].requires_grad_(False)
    cache = open_cache(str(tmp_path), family_of(*blip), torch.float32, 9, limit_gb=1e-5)
    assert "at most 1e-05 GB with all other features there (feature_cache_gb)" in cache.describe(9)
    (stored,) = stored_caches(tmp_path)
    assert "32 px, torch.float32" in stored.describe()


def test_a_limit_that_other_features_use_up_is_an_error(blip, tmp_path, caplog, monkeypatch):
    blip[0].requires_grad_(False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.bin").write_bytes(bytes(10_000))
    with pytest.raises(ValueError, match="feature_cache_gb is 1e-05 .*`medcap cache clear` removes them"):
        open_cache(str(tmp_path), family_of(*blip), torch.float32, 9, limit_gb=1e-5)


def test_an_unusable_default_folder_means_no_cache(blip, tmp_path, caplog, monkeypatch):
    (tmp_path / "medcap").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    blip[0].requires_grad_(False)
    assert open_cache("auto", family_of(*blip), torch.float32, 9) is None
    assert "no feature cache" in caplog.text
    with pytest.raises(ValueError, match="Not a directory; set it to another folder, auto or off"):
        open_cache(str(tmp_path / "medcap" / "x"), family_of(*blip), torch.float32, 9)
