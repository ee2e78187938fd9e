"""Images and folders of samples: placing, colours, labels, and what does not fit the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import ppuc
from ppuc.compiler.inputs import InputSpec
from ppuc.compiler.quantization.data import Data
from ppuc.compiler.quantization.images import Preprocessing, read_image, read_label_map, read_preprocessing
from ppuc.ir.errors import InputError, UsageError
from ppuc.ir.types import DType, TensorType
from tests.support.onnx_text import model_of

image = pytest.importorskip("PIL.Image")


def picture(path: Path, rows: int, columns: int, *colours: int) -> Path:
    """A picture of one colour, or of one channel."""
    bytes_ = np.full((rows, columns, len(colours)), colours, np.uint8)
    image.fromarray(bytes_ if len(colours) == 3 else bytes_[..., 0]).save(path)
    return path


def declared(folder: Path, text: str) -> Preprocessing:
    (folder / "how.toml").write_text(text)
    return read_preprocessing(folder / "how.toml")


@pytest.mark.parametrize(("align", "top"), [("centre", 3), ("top-left", 0)])
def test_a_letterboxed_picture_lies_where_declared(tmp_path: Path, align: str, top: int) -> None:
    """4 x 10 into 12 x 20: twice as large, 8 rows of 12, the rest padded, colours in the declared order."""
    file = picture(tmp_path / "a.png", 4, 10, 10, 20, 30)
    how = declared(
        tmp_path,
        f'size = [14, 20]\nresize = "letterbox"\nalign = "{align}"\npad = [1, 2, 3]\ncolour = "bgr"\ndtype = "u8"\n'
        'layout = "hwc"\ninterpolation = "bilinear"\n',
    )
    array = read_image(file, how)
    assert (array.shape, array.dtype) == ((14, 20, 3), np.uint8)
    inside = np.zeros(14, bool)
    inside[top : top + 8] = True
    np.testing.assert_array_equal(array[inside], np.broadcast_to([30, 20, 10], (8, 20, 3)))
    np.testing.assert_array_equal(array[~inside], np.broadcast_to([1, 2, 3], (6, 20, 3)))


def test_interpolation_is_as_declared(tmp_path: Path) -> None:
    image.fromarray(np.array([[0, 200]], np.uint8)).save(tmp_path / "a.png")
    text = 'size = [1, 4]\ncolour = "grey"\ndtype = "u8"\ninterpolation = '
    assert read_image(tmp_path / "a.png", declared(tmp_path, text + '"nearest"')).tolist() == [[[0, 0, 200, 200]]]
    assert read_image(tmp_path / "a.png", declared(tmp_path, text + '"bilinear"')).tolist() == [[[0, 50, 150, 200]]]


def test_a_label_map_is_placed_as_its_picture(tmp_path: Path) -> None:
    file = picture(tmp_path / "m.png", 4, 8, 7)
    found = read_label_map(file, declared(tmp_path, 'size = [8, 8]\nresize = "letterbox"\n'))
    assert found[:2].tolist() == found[6:].tolist() == [[255] * 8] * 2
    assert np.unique(found[2:6]).tolist() == [7]
    with pytest.raises(InputError, match="is not a map of class numbers"):
        read_label_map(picture(tmp_path / "c.png", 4, 8, 1, 2, 3), declared(tmp_path, "size = [8, 8]"))


def specs(**shapes: tuple[int, ...]) -> tuple[InputSpec, ...]:
    return tuple(InputSpec(name, TensorType(DType.F32, shape)) for name, shape in shapes.items())


def test_a_folder_for_each_input_and_label(tmp_path: Path) -> None:
    """Two inputs, of which one is grey; boxes of a letterboxed picture of 4 x 8 in 8 x 8; columns of a table."""
    data = tmp_path / "data"
    for part in ("left", "right", "boxes"):
        (data / part).mkdir(parents=True)
    for i in range(3):
        picture(data / "left" / f"{i}.png", 4, 8, 51 * i, 0, 0)
        picture(data / "right" / f"{i}.png", 8, 8, 255)
        (data / "boxes" / f"{i}.txt").write_text("5 0.5 0.5 0.5 1.0\n" * (i + 1))
    (data / "labels.csv").write_text("file,mark,word\n" + "".join(f"{i}.png,{i + 7},w{i}\n" for i in range(3)))
    how = declared(tmp_path, 'size = [8, 8]\nresize = "letterbox"\npad = 0\n[inputs.right]\ncolour = "grey"\n')
    inputs = specs(left=(2, 3, 8, 8), right=(2, 1, 8, 8))
    batches = list(Data(data, how, labels=True).batches(inputs))
    assert [batch.rows for batch in batches] == [2, 1]
    first = batches[0].arrays
    assert first["left"][1, 0, 4, 4] == pytest.approx(0.2)
    assert first["right"].min() == 1.0
    assert first["mark"].tolist() == [7, 8]
    assert first["word"].tolist() == ["w0", "w1"]
    assert first["boxes"][1].tolist() == [[2, 2, 6, 6]] * 2
    assert first["boxes.classes"].tolist() == [[5, -1], [5, 5]]
    assert np.isnan(first["boxes"][0, 1]).all()
    assert set(next(iter(Data(data, how).samples(inputs)))) == {"left", "right"}
    (data / "right" / "2.png").unlink()
    with pytest.raises(InputError, match="right: has no file '2'"):
        list(Data(data, how).samples(inputs))


def test_a_table_beside_images(tmp_path: Path) -> None:
    for i in range(2):
        picture(tmp_path / f"{i}.png", 4, 4, 1, 2, 3)
    how, inputs = Preprocessing((4, 4)), specs(x=(2, 3, 4, 4))
    (tmp_path / "labels.csv").write_text("file,text\n0.png,ab\n")
    with pytest.raises(InputError, match=r"labels.csv: has no line for '1.png'"):
        list(Data(tmp_path, how, labels=True).samples(inputs))
    (tmp_path / "labels.csv").write_text("file,text,number\n0.png,0042,-0.5\n1.png,12,3\n")
    first = next(iter(Data(tmp_path, how, labels=True).stacks(["x"])))
    assert first["text"].tolist() == ["0042"]
    assert first["number"].tolist() == [-0.5]
    (tmp_path / "labels.csv").write_text("file,text\n0.png,ab\n1.png,12\n")
    (only,) = Data(tmp_path, how, labels=True).samples(inputs)
    assert only["text"].tolist() == ["ab", "12"]
    (tmp_path / "labels.csv").write_text("\ufefffile,text\n\n0.png,ab\n1.png,12\n\n", encoding="utf-8")
    assert [s["text"][0] for s in Data(tmp_path, how, labels=True).stacks(["x"])] == ["ab", "12"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"file,t\n0.png,1\n0.png,2\n", "labels.csv: has several lines for '0'"),
        (b"file,x\n0.png,1\n", "labels.csv: its column 'x' is called like an input of the model"),
        (b"\xff\xfe", "labels.csv: cannot be read"),
        (b"file\n", "labels.csv: is not a table"),
    ],
)
def test_tables_that_make_no_sense(tmp_path: Path, table: bytes, message: str) -> None:
    picture(tmp_path / "0.png", 4, 4, 1, 2, 3)
    (tmp_path / "labels.csv").write_bytes(table)
    with pytest.raises(InputError, match=message):
        list(Data(tmp_path, Preprocessing((4, 4)), labels=True).samples(specs(x=(1, 3, 4, 4))))


@pytest.mark.parametrize("text", ["a b\n", "0 .5 .5 nan 1\n", "0.5 .5 .5 1 1\n", "0 .5 .5 1\n"])
def test_lines_that_are_no_boxes(tmp_path: Path, text: str) -> None:
    for name in ("x", "t"):
        (tmp_path / name).mkdir()
    picture(tmp_path / "x" / "0.png", 4, 4, 1, 2, 3)
    (tmp_path / "t" / "0.txt").write_text(text)
    with pytest.raises(InputError, match=r"0.txt: is not a list of boxes"):
        list(Data(tmp_path, Preprocessing((4, 4)), labels=True).samples(specs(x=(1, 3, 4, 4))))


def test_an_input_that_the_model_does_not_have(tmp_path: Path) -> None:
    picture(tmp_path / "0.png", 4, 4, 1, 2, 3)
    (tmp_path / "how.toml").write_text("size = [4, 4]\n[inputs.z]\ncolour = 'bgr'\n")
    data = Data(tmp_path, read_preprocessing(tmp_path / "how.toml"))
    with pytest.raises(UsageError, match=r"how.toml: \[inputs.z\] is not an input of the model\n  expected: x"):
        list(data.samples(specs(x=(1, 3, 4, 4))))
    with pytest.raises(UsageError, match=r"\[inputs.z\] is not an input"):
        data.shapes({"x": (1, 3, 4, 4)}, {})


def test_a_label_map_of_one_bit_holds_classes_0_and_1(tmp_path: Path) -> None:
    image.fromarray(np.array([[0, 1], [1, 0]], bool)).save(tmp_path / "t.png")
    assert read_label_map(tmp_path / "t.png", Preprocessing((2, 2))).tolist() == [[0, 1], [1, 0]]
    placed = read_label_map(tmp_path / "t.png", Preprocessing((2, 4), "letterbox"))
    assert placed.tolist() == [[255, 0, 1, 255], [255, 1, 0, 255]]


def test_a_picture_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    image.new("RGB", (4, 4)).save(tmp_path / "x.bmp")
    data = bytearray((tmp_path / "x.bmp").read_bytes())
    data[18:26] = (60000).to_bytes(4, "little") * 2
    (tmp_path / "x.bmp").write_bytes(data)
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_image(tmp_path / "x.bmp", Preprocessing((4, 4)))


@pytest.mark.parametrize(
    ("how", "text"),
    [
        (
            Preprocessing((4, 6)),
            "'size' does not fit the model\n  got: size = [4, 6]\n  expected: input 'x': [1, 3, 4, 5]",
        ),
        (Preprocessing((4, 5), layout="hwc"), "'layout' does not fit the model\n  got: layout = \"hwc\""),
        (Preprocessing((4, 5), colour="grey"), "'colour' does not fit the model\n  got: colour = \"grey\""),
        (
            Preprocessing((4, 5), dtype="u8"),
            "'dtype' does not fit the model\n  got: dtype = \"u8\"\n  expected: f32 of",
        ),
    ],
)
def test_what_does_not_fit_the_model_names_the_key(tmp_path: Path, how: Preprocessing, text: str) -> None:
    picture(tmp_path / "a.png", 4, 5, 1, 2, 3)
    with pytest.raises(UsageError) as caught:
        list(Data(tmp_path, how).samples(specs(x=(1, 3, 4, 5))))
    assert str(caught.value).startswith(f"--preprocess: {text}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size = [2, 2]\npad = 3", "'pad' has no effect with resize = \"stretch\""),
        ('size = [2, 2]\nresize = "letterbox"\npad = 300', "'pad' must be bytes"),
        ('size = [2, 2]\ndtype = "u8"\nmean = 3', "'mean' has no effect with dtype = \"u8\""),
        ('size = [2, 2]\ninterpolation = "cubic"', "'interpolation' is unknown"),
        ("size = [2, 2]\nmeen = 3", "did you mean 'mean'?"),
        ("size = [2, 2]\ninputs = 3", "'inputs' holds a table for each input"),
        ("size = [2, 2]\nmean = [1, 2]", "'mean' must be numbers, one or one per colour"),
    ],
)
def test_declarations_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        declared(tmp_path, text)
    assert message in str(caught.value)


def test_compile_takes_images_like_the_command(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    text = "net (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { y = Conv(x, w) }"
    onnx.save(model_of(text, {"w": rng.standard_normal((4, 3, 1, 1), np.float32)}), tmp_path / "net.onnx")
    (tmp_path / "images").mkdir()
    for i in range(9):
        image.fromarray(rng.integers(0, 255, (6, 9, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "how.toml").write_text("size = [8, 8]\n")
    given = {"calibrate": tmp_path / "images", "preprocess": tmp_path / "how.toml"}
    program = ppuc.compile(tmp_path / "net.onnx", "ppu-tiny", "fp8", **given)  # type: ignore[arg-type]
    stacked = [{"x": read_image(tmp_path / "images" / f"{i}.png", Preprocessing((8, 8)))[None]} for i in range(9)]
    assert program.artifact == ppuc.compile(tmp_path / "net.onnx", "ppu-tiny", "fp8", calibrate=stacked).artifact
    (tmp_path / "how.toml").write_text("size = [8, 9]\n")
    with pytest.raises(ppuc.PpucError, match=r"how.toml: 'size' does not fit the model"):
        ppuc.compile(tmp_path / "net.onnx", "ppu-tiny", "fp8", **given)  # type: ignore[arg-type]
    with pytest.raises(ppuc.PpucError, match="preprocess: has no effect without calibrate"):
        ppuc.compile(tmp_path / "net.onnx", "ppu-tiny", preprocess=tmp_path / "how.toml")
