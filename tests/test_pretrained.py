"""Published files of encoders: weights by their names there, old PyTorch's pickles read without running them, tokenizers."""
import io
import pickle
import struct

import numpy as np
import pytest
from tiny_encoder import IDS, SHAPES, folder, group, make, tensor, tensors_of, text, torch_file

from minillm.data.vocabularies import Reactions, WordPieces
from minillm.errors import MiniLLMError
from minillm.models.pretrained import load_encoder, package_folder
from minillm.models.torch_file import read_torch, read_value

FEW = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4), "c": np.float16([1.5, 2])}


# --- a folder

@pytest.mark.parametrize("torch", [False, True], ids=["safetensors", "old PyTorch"])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_published_folder_becomes_the_model_it_was(kind, torch, tmp_path):
    ours, back = make(kind), load_encoder(folder(tmp_path, kind, torch=torch))
    assert back.shape == ours.shape
    assert type(back) is type(ours)
    with ours.ops.context.no_record(), back.ops.context.no_record():
        assert np.array_equal(ours(IDS).data, back(IDS).data)


def test_an_encoder_without_a_head_and_weights_in_float16(tmp_path):
    tensors = {name: a.astype(np.float16) for name, a in tensors_of(make("bert"), "bert").items() if "predictions" not in name}
    tensors = {name.removeprefix("bert."): a for name, a in tensors.items()}
    back = load_encoder(folder(tmp_path, "bert", tensors, architectures=["BertModel"]))
    assert np.array_equal(back.tokens.weight.data, tensors["embeddings.word_embeddings.weight"].astype(np.float32))


def without(name):
    return lambda tensors: tensors.pop(name)


def put(name, array):
    return lambda tensors: tensors.update({name: array})


UP = "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight"


@pytest.mark.parametrize(("change", "says"), [
    (without(UP), r"missing \['block0.up.weight'\]"), (put("albert.more", np.ones(3, np.float32)), r"unexpected \['albert.more'"),
    (put(UP, np.ones((24, 15), np.float32)), r"block0.up.weight is float32 \(24, 15\) there, float32 \(24, 16\) here"),
    (put("predictions.decoder.weight", np.ones((40, 8), np.float32)), "decoder.weight is not the table of tokens again")])
def test_weights_that_do_not_fit_are_named_in_one_line(change, says, tmp_path):
    tensors = tensors_of(make(), "albert")
    change(tensors)
    with pytest.raises(MiniLLMError, match=says) as error:
        load_encoder(folder(tmp_path, "albert", tensors))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("fields", "says"), [
    ({"model_type": "gpt2"}, "unknown kind of encoder 'gpt2'"), ({"hidden_act": "silu"}, "unknown activation 'silu'"),
    ({"num_hidden_groups": 2}, "several groups of layers")])
def test_a_model_of_another_kind_is_refused(fields, says, tmp_path):
    with pytest.raises(MiniLLMError, match=says):
        load_encoder(folder(tmp_path, **fields))


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(MiniLLMError, match=r"config.json is missing or no configuration"):
        load_encoder(tmp_path)
    path = folder(tmp_path)
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-5])
    with pytest.raises(MiniLLMError, match=r"model.safetensors is truncated or no safetensors file"):
        load_encoder(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(MiniLLMError, match=r"has neither model.safetensors nor pytorch_model.bin"):
        load_encoder(path)
    for content in ("[]", "{", '{"a": 1}'):
        (path / "config.json").write_text(content)
        with pytest.raises(MiniLLMError, match="no configuration of a model"):
            load_encoder(path)
    (path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(MiniLLMError, match="configuration lacks vocab_size, num_hidden_layers"):
        load_encoder(path)


def test_a_package_is_found_without_being_imported():
    assert package_folder("no_such_package", "model") is None
    assert (package_folder("minillm", "models") / "bert.py").is_file()


# --- old PyTorch's pickles

def read(tmp_path, content):
    (tmp_path / "weights.bin").write_bytes(content)
    return read_torch(tmp_path / "weights.bin")


def test_tensors_of_three_types_are_read_as_they_were_written(tmp_path):
    found = read(tmp_path, torch_file(FEW))
    assert found.keys() == FEW.keys()
    for name, array in FEW.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_pytorchs_own_file_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    x = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    tensors = {"all": x, "turned": x.permute(2, 0, 1), "part": x[1, :, 1:3], "one": torch.tensor(3.5), "none": torch.zeros(0, 2)}
    torch.save(tensors, tmp_path / "dict.bin", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "state.bin", _use_new_zipfile_serialization=False)
    found = read_torch(tmp_path / "dict.bin")
    for name, array in tensors.items():
        assert np.array_equal(found[name], array.numpy()), name
    assert read_torch(tmp_path / "state.bin")["weight"].shape == (2, 3)
    torch.save(tensors, tmp_path / "new.bin")
    with pytest.raises(MiniLLMError, match=r"new.bin cannot be read as weights that PyTorch wrote before version 1.6"):
        read_torch(tmp_path / "new.bin")


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def evils(made):
    yield pickle.dumps(Evil(open, (made, "w")), protocol=2)
    yield pickle.dumps(Evil(exec, (f"open({made!r}, 'w')",)), protocol=0)
    yield pickle.dumps(Evil(print, ("x",)), protocol=4)
    yield pickle.dumps({"a": Evil(getattr, (dict, "update"))}, protocol=2)
    yield pickle.dumps(Evil, protocol=2)


@pytest.mark.parametrize("number", range(5))
def test_a_pickle_that_would_run_something_is_refused_and_nothing_runs(number, tmp_path):
    made = str(tmp_path / "made")
    evil = list(evils(made))[number]
    for content in (evil, torch_file(FEW, value=evil[2:-1] if evil[:1] == b"\x80" else evil[:-1])):
        with pytest.raises(MiniLLMError, match=r"\((it asks for|it has the opcode)") as error:
            read(tmp_path, content)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "made").exists()


def test_a_pickle_that_asks_for_something_else_is_refused():
    with pytest.raises(ValueError, match="it asks for 'posix system'"):
        read_value(io.BytesIO(b"\x80\x02cposix\nsystem\n."))


ONE, TWO = b"X\x01\x00\x00\x00a", np.arange(2, dtype=np.float32)
NESTED = b")" + b"\x85" * 100_000


@pytest.mark.parametrize("value", [
    b"}" + ONE + tensor("0", TWO, start=1) + b"s", b"}" + ONE + tensor("0", TWO, steps=[2]) + b"s",
    b"}" + ONE + tensor("0", np.zeros((3, 2), np.float32), steps=[0, 1]).replace(b"J\x06\0\0\0", b"J\x02\0\0\0") + b"s",
    b"}" + ONE + tensor("0", TWO, start=-1) + b"s", b"}" + ONE + tensor("0", TWO, steps=[1, 1]) + b"s",
    b"}" + ONE + tensor("5", TWO) + b"s", b"}" + ONE + b"K\x01s", b"}K\x01" + tensor("0", TWO) + b"s", b"K\x05", b"}" + ONE + b"s",
    b"}" + NESTED + b"Ns", NESTED, b"", b"0", b"h\x05", b"(t", b"a" * 3, text("torch FloatStorage") + b")R",
    b"]" + group(text("storage"), text("O"), text("0"), text("cpu"), 1, b"N") + b"Q"])
def test_a_damaged_pickle_is_one_clear_line(value, tmp_path):
    with pytest.raises(MiniLLMError, match=r"cannot be read as weights that PyTorch wrote before version 1.6 \(") as error:
        read(tmp_path, torch_file({"0": TWO}, value))
    assert "\n" not in str(error.value)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = torch_file(FEW)
    for end in range(0, len(whole), 7):
        with pytest.raises(MiniLLMError, match="cannot be read"):
            read(tmp_path, whole[:end])
    with pytest.raises(MiniLLMError, match="or has 3 where 2 are meant"):
        read(tmp_path, torch_file({"0": TWO}, numbers=struct.pack("<q", 3) + bytes(12)))


# --- tokenizers

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##afford", "##able", "##aff", "the", "a", ".", ",", "'", "中",
          "cafe", "##s", "!"]


@pytest.fixture
def vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    return tmp_path / "vocab.txt"


@pytest.mark.parametrize(("words", "pieces"), [
    ("Unaffordable", "un ##afford ##able"), ("unaffable", "un ##aff ##able"), ("the  CAFÉS,\ta.", "the cafe ##s , a ."),
    ("a中a", "a 中 a"), ("the'\u00a0a\u0000!", "the ' a !"), ("thee a", "[UNK] a"), ("a" * 101, "[UNK]"), ("", ""), (" \n", "")])
def test_words_are_cut_into_the_longest_pieces(words, pieces, vocabulary):
    tokenizer = WordPieces(vocabulary)
    assert [PIECES[i] for i in tokenizer.encode(words)] == ["[CLS]", *pieces.split(), "[SEP]"]


def test_shorter_rows_are_padded(vocabulary):
    ids = WordPieces(vocabulary).encode_all(["the", "a a a"])
    assert ids.dtype == np.int32
    assert np.array_equal(ids, [[2, 9, 3, 0, 0], [2, 10, 10, 10, 3]])
    assert WordPieces(vocabulary).encode_all([]).shape == (0, 0)


def test_a_reaction_is_cut_into_atoms_bonds_and_rings(tmp_path):
    signs = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "C", "Cl", "c", "1", "(", "=", "O", ")", ".", "[K+]", ">>", "Br", "%12"]
    (tmp_path / "vocab.txt").write_text("\n".join(signs), "utf-8")
    pieces = [signs[i] for i in Reactions(tmp_path / "vocab.txt").encode("CC(=O)Cl.[K+]>>Brc1%12N")]
    assert " ".join(pieces) == "[CLS] C C ( = O ) Cl . [K+] >> Br c 1 %12 [UNK] [SEP]"


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[CLS]\n[SEP]\nthe\n")
    with pytest.raises(MiniLLMError, match=r"vocab.txt lacks \[UNK\], \[MASK\]"):
        WordPieces(tmp_path / "vocab.txt")
    with pytest.raises(MiniLLMError, match="does not exist"):
        WordPieces(tmp_path / "none.txt")
