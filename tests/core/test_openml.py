import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from openml_server import API, dataset, serving
from safetensors.torch import load_file

from mmstudy.core import datasets, openml, tasks
from mmstudy.core.openml import Source
from mmstudy.core.tasks import Task

SMALL = {  # in the shapes of the real ones; of twelve classes, so that 10 and 11 come after 9
    "cifar100": Source(41983, "CIFAR-100", 144, 12, (3, 32, 32), True),
    "mnist": Source(554, "mnist_784", 60, 3, (1, 28, 28), False),
}


def made(name: str) -> tuple[np.ndarray, np.ndarray]:
    source = SMALL[name]
    draws = np.random.default_rng(source.number)
    pixels = draws.integers(0, 256, (source.examples, int(np.prod(source.image))), dtype=np.uint8)
    return pixels, draws.permutation(np.arange(source.examples) % source.classes)


def files_of(name: str) -> dict[str, bytes]:
    pixels, classes = made(name)
    return dataset(SMALL[name].number, SMALL[name].title, pixels, [str(c) for c in classes])


FILES = {name: files_of(name) for name in SMALL}
(ARFF,) = (path for path in FILES["cifar100"] if path.endswith(".arff"))
SIZE = len(FILES["cifar100"][ARFF])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data directory; no pause between attempts, and no way to a server but the stand-in."""
    monkeypatch.setattr(openml, "SOURCES", SMALL)
    monkeypatch.setattr(openml, "PAUSE", 0.0)
    monkeypatch.setenv("MMSTUDY_DATA", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("sklearn.datasets._openml.urlopen", lambda *_, **__: pytest.fail("scikit-learn asks as well"))
    datasets._images.cache_clear()
    yield tmp_path
    datasets._images.cache_clear()


@pytest.fixture
def server(folder, monkeypatch):
    with serving({path: content for files in FILES.values() for path, content in files.items()}) as running:
        monkeypatch.setenv("MMSTUDY_OPENML", running.url)
        yield running


def asked_of_arff(server) -> list[int]:
    """From which byte on the images were asked for, each time."""
    return [begun for path, begun in server.asked if path == ARFF]


def assert_loaded(name="cifar100"):
    inputs, targets = openml.load(name)
    pixels, classes = made(name)
    assert inputs.dtype == torch.uint8
    assert targets.dtype == torch.int64
    assert np.array_equal(inputs.numpy(), pixels)
    assert np.array_equal(targets.numpy(), classes)


# ---- Fetching ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_images_are_fetched_once(server, folder, name):
    assert_loaded(name)
    assert len(server.asked) == 4  # features, qualities, the description, the images
    server.files.clear()
    assert_loaded(name)
    assert len(server.asked) == 4
    assert set(load_file(folder / f"{name}.safetensors")) == {"inputs", "targets"}
    assert not list(folder.rglob("*.part"))


def test_a_task_has_images_standardized_per_channel(server):
    data = tasks.load(Task("cifar100", (4, 4, 2), 100, seed=3, family="deep ResNet"))
    assert [len(part.targets) for part in data] == [100, 12, 24]
    assert data.image == (3, 32, 32)
    assert data.augmented
    pixels = data.training.inputs.unflatten(1, (3, -1)).double()
    torch.testing.assert_close(pixels.mean((0, 2)), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2), correction=0), torch.ones(3, dtype=torch.float64))
    order = torch.randperm(144, generator=tasks.generator("split", "cifar100", 3))
    images, classes = made("cifar100")
    first = torch.tensor(images[order[36]]).view(3, -1).double()  # 24 and 12 stand before the training part
    scale = [torch.tensor(images)[order[36:136]].view(100, 3, -1)[:, c].double() for c in range(3)]
    expected = torch.stack([(first[c] - s.mean()) / s.std(correction=0) for c, s in enumerate(scale)])
    torch.testing.assert_close(data.training.inputs[0].view(3, -1).double(), expected, atol=1e-5, rtol=1e-5)
    assert data.training.targets[0] == classes[order[36]]
    assert not tasks.load(Task("mnist", (4,), 40)).augmented


def test_two_at_once_fetch_once(server):
    with ThreadPoolExecutor(2) as executor:
        first, second = executor.map(openml.load, ["cifar100", "cifar100"])
    assert torch.equal(first[0], second[0])
    assert asked_of_arff(server) == [0]


def test_a_mirror_may_lie_in_a_folder(server, monkeypatch):
    server.files.update({f"/mirror{path}": content for path, content in server.files.items()})
    monkeypatch.setenv("MMSTUDY_OPENML", f"{server.url}/mirror/")
    assert_loaded()
    assert all(path.startswith("/mirror/") for path, _ in server.asked)


def test_datasets_are_fetched_ahead(server, folder, capsys):
    openml.main(["mnist"])
    assert capsys.readouterr().out == f"mnist: 60 images in 3 classes, {folder}/mnist.safetensors\n"
    openml.main([])
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(ValueError, match="unknown dataset 'cifar'"):
        openml.main(["cifar"])


def test_the_folder_is_scikit_learns_where_none_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("MMSTUDY_DATA", raising=False)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "sklearn"))
    assert openml.directory() == tmp_path / "sklearn"
    assert openml.directory().is_dir()


# ---- What breaks off ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("honest", [True, False], ids=["seen", "unseen, as OpenML does it"])
def test_a_download_that_breaks_off_goes_on(server, honest):
    server.honest, server.cuts = honest, [1000, 50_000, 200_000]
    assert_loaded()
    assert asked_of_arff(server) == [0, 1000, 51_000, 251_000]  # not a byte twice


def test_what_an_earlier_process_has_downloaded_is_used(server, folder):
    place = folder / "openml/openml.org" / ARFF.lstrip("/")
    place.parent.mkdir(parents=True)
    place.with_suffix(".arff.part").write_bytes(FILES["cifar100"][ARFF][: SIZE // 2])
    assert_loaded()
    assert asked_of_arff(server) == [SIZE // 2]
    assert gzip.decompress(place.with_suffix(".arff.gz").read_bytes()) == FILES["cifar100"][ARFF]


def test_a_server_that_cannot_go_on_begins_anew(server):
    server.ranges, server.cuts = False, [1000, 500]
    assert_loaded()
    assert len(asked_of_arff(server)) == 3


def test_a_download_that_always_breaks_off_is_given_up_and_kept(server, folder):
    server.cuts = [70_000, *[0] * openml.TRIES]
    with pytest.raises(FileNotFoundError, match=r"breaks off at the same place.* a download that broke off goes on"):
        openml.load("cifar100")
    (part,) = folder.rglob("*.part")
    assert part.stat().st_size == 70_000
    assert not (folder / "cifar100.safetensors").exists()
    assert_loaded()
    assert asked_of_arff(server)[-1] == 70_000


def test_a_file_that_is_another_is_thrown_away(server, folder):
    right = server.files[ARFF]
    server.files[ARFF] = right[:-10] + b"0" * 10
    with pytest.raises(ValueError, match=r"another checksum.*try again"):
        openml.load("cifar100")
    assert not list(folder.rglob("*.part"))
    server.files[ARFF] = right
    assert_loaded()


def test_a_server_that_cannot_go_on_and_has_another_file_is_given_up(server):
    server.ranges, server.files[ARFF] = False, server.files[ARFF][:-10] + b"0" * 10
    with pytest.raises(FileNotFoundError, match="has a wrong checksum, again and again"):
        openml.load("cifar100")
    assert len(asked_of_arff(server)) == 1 + openml.TRIES


def test_a_length_that_is_announced_too_short_is_not_believed(server):
    whole = server.files[ARFF]
    server.files[ARFF] = whole[:300_000]  # as if that were all, at first
    server.later = {ARFF: whole}
    assert_loaded()
    assert asked_of_arff(server) == [0, 300_000]


def test_half_a_file_of_something_else_is_thrown_away(server, folder):
    place = folder / "openml/openml.org" / ARFF.lstrip("/")
    place.parent.mkdir(parents=True)
    place.with_suffix(".arff.part").write_bytes(b"x" * (SIZE + 1))
    with pytest.raises(ValueError, match="another checksum"):
        openml.load("cifar100")
    assert_loaded()


# ---- What is not there -------------------------------------------------------------------------------------------


def assert_told(folder, reason):
    with pytest.raises(FileNotFoundError) as refused:
        openml.load("cifar100")
    told = str(refused.value)
    assert "'cifar100' (CIFAR-100, https://www.openml.org/d/41983)" in told
    assert f"is not in {folder}" in told
    assert "`python -m mmstudy.core.openml cifar100`" in told
    assert f"copy cifar100.safetensors into {folder}" in told
    assert reason in told


def test_without_a_network_it_is_said_what_to_do(folder, monkeypatch):
    monkeypatch.setenv("MMSTUDY_OPENML", "http://127.0.0.1:9")  # nobody listens there
    assert_told(folder, "refused")


def test_a_dataset_that_the_server_does_not_have(server, folder):
    del server.files[f"{API}41983"]
    assert_told(folder, "404")


def test_a_copy_from_elsewhere_is_enough(server, folder, tmp_path_factory, monkeypatch):
    assert_loaded()
    other = tmp_path_factory.mktemp("other")
    (other / "cifar100.safetensors").write_bytes((folder / "cifar100.safetensors").read_bytes())
    monkeypatch.setenv("MMSTUDY_DATA", str(other))
    monkeypatch.setenv("MMSTUDY_OPENML", "http://127.0.0.1:9")
    assert_loaded()


# ---- What is wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pixels, classes: (pixels[:-1], classes[:-1]), r"\(144, 3072, 12\) .* \(143, 3072, 12\)"),
        (lambda pixels, classes: (pixels[:, 3:], classes), r"has \(144, 3069, 12\)"),
        (lambda pixels, classes: (pixels, classes % 10), r"has \(144, 3072, 10\)"),
        (lambda pixels, classes: (pixels / 255, classes), r"whole numbers from 0 to 255"),
        (lambda pixels, classes: (pixels.astype(int) + 1, classes), r"whole numbers from 0 to 255"),
    ],
    ids=["examples", "pixels", "classes", "fractions", "no bytes"],
)
def test_a_dataset_that_is_another_is_refused(server, folder, change, message):
    pixels, classes = change(*made("cifar100"))
    server.files.update(dataset(41983, "CIFAR-100", pixels, [str(c) for c in classes]))
    with pytest.raises(ValueError, match=message):
        openml.load("cifar100")
    assert not (folder / "cifar100.safetensors").exists()


def test_classes_may_be_words(server):
    pixels, classes = made("cifar100")
    server.files.update(dataset(41983, "CIFAR-100", pixels, [f"kind_{c:02d}" for c in classes]))
    assert_loaded()


@pytest.mark.parametrize("damage", ["cut", "a byte", "empty"])
def test_a_damaged_file_is_named_and_made_again(server, folder, damage):
    assert_loaded()
    path = folder / "cifar100.safetensors"
    content = path.read_bytes()
    changed = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
    path.write_bytes({"cut": content[:-100], "a byte": changed, "empty": b""}[damage])
    with pytest.raises(ValueError, match=rf"{path} is damaged .*: delete it, and it is made again"):
        openml.load("cifar100")
    asked = len(server.asked)
    path.unlink()
    assert_loaded()
    assert len(server.asked) == asked  # from what scikit-learn keeps


def test_the_numbers_are_those_of_openml():
    """As public code has them; what they bring is checked when it comes."""
    assert {name: source.number for name, source in openml.SOURCES.items()} == {
        "mnist": 554, "fashion_mnist": 40996, "cifar10": 40927, "cifar100": 41983,
    }  # fmt: skip
    assert openml.SOURCES.keys() <= datasets.DATASETS.keys()


def test_the_stand_in_speaks_as_openml_does():
    """The fields that scikit-learn reads are in its own copies of what the server has said about real datasets."""
    import sklearn.datasets

    real = Path(sklearn.datasets.__file__).parent / "tests/data/openml/id_61"
    if not real.exists():
        pytest.skip("scikit-learn came without its tests")
    said = {path: json.loads(content) for path, content in FILES["mnist"].items() if path.startswith(API)}
    for kind, path in (("jd", f"{API}554"), ("jdf", f"{API}features/554"), ("jdq", f"{API}qualities/554")):
        (ours,) = said[path].values()
        (theirs,) = json.loads(gzip.decompress((real / f"api-v1-{kind}-61.json.gz").read_bytes())).values()
        if kind == "jd":
            assert ours.keys() <= theirs.keys()
        else:
            (ours,), (theirs,) = ours.values(), theirs.values()
            assert (ours[0].keys(), ours[-1].keys()) == (theirs[0].keys(), theirs[-1].keys())
