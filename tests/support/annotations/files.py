"""The published files of ../shared/annotations that hold rows about videos for training: format,
and the names of the videos that their rows are about, read by other means than the formats."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

Names = Callable[[Path], Iterable[str]]


class Published(NamedTuple):
    """``file``: below the folder, or a pattern for several that are read as one; ``format``: value
    of ``ingest.format``; ``names``: the videos that its rows are about."""

    file: str
    format: str
    names: Names


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def _table(file: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text, delimiter=delimiter))


def keys(file: Path) -> Iterable[str]:
    return [f"videos/{key}.mp4" for key in _json(file)]


def files_named_by_keys(file: Path) -> Iterable[str]:
    return [f"videos/{key}" for key in _json(file)]


def database(file: Path) -> Iterable[str]:
    return [f"{key}.mp4" for key in _json(file)["database"]]


def stems(column: str) -> Names:
    def names(file: Path) -> Iterable[str]:
        return [f"{row[column]}.mp4" for row in _rows(file)]

    return names


def paths(column: str) -> Names:
    """Names as the rows have them, below the folder."""

    def names(file: Path) -> Iterable[str]:
        return [str(row[column]).removeprefix("./") for row in _rows(file) if isinstance(row.get(column), str)]

    return names


def last(column: str) -> Names:
    """The last part of the names as the rows have them."""

    def names(file: Path) -> Iterable[str]:
        return ["videos/" + str(row[column]).rpartition("/")[2] for row in _rows(file)]

    return names


def _rows(file: Path) -> list[Any]:
    if file.suffix == ".csv":
        return _table(file, "\t" if file.name == "val_1.csv" else ",")
    rows = _lines(file) if file.suffix == ".jsonl" else _json(file)
    return rows["annotations"] if isinstance(rows, dict) else rows


def words(place: int, suffix: str = ".mp4") -> Names:
    """Files named by a word of each line."""

    def names(file: Path) -> Iterable[str]:
        return [line.split()[place] + suffix for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]

    return names


def constant(*files: str) -> Names:
    return lambda _: files


def windows(file: Path) -> Iterable[str]:
    """Clips of Kinetics for even rows, whole recordings for odd ones."""
    for place, row in enumerate(_table(file)):
        whole = f"{row['youtube_id']}.mp4"
        clip = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
        yield whole if place % 2 else clip


def videos_of_messages(file: Path) -> Iterable[str]:
    rows = _lines(file) if file.suffix == ".jsonl" else _json(file)
    return [video for row in rows for video in row.get("videos", ()) if isinstance(video, str)]


def msrvtt(file: Path) -> Iterable[str]:
    return [f"{video['video_id']}.mp4" for video in _json(file)["videos"]]


FILES = (
    Published("activitynet/activitynet_v1-3_valid_tsp_groundtruth.csv", "activitynet", last("filename")),
    Published("activitynet/made/activity_net.v1-3.min.json", "activitynet", database),
    Published("activitynet_captions/train.json", "activitynet_captions", keys),
    Published("activitynet_captions/val_1.json", "activitynet_captions", keys),
    Published("activitynet_captions/val_2.json", "activitynet_captions", keys),
    Published("activitynet_captions/val_1.csv", "activitynet", stems("video_id")),
    Published("activitynet_captions/paragraphs/anet_entities_val_1_para.json", "activitynet", keys),
    Published("charades_sta/charades_sta_train.txt", "charades_sta", words(0)),
    Published("charades_sta/charades_sta_test.txt", "charades_sta", words(0)),
    Published("charades_sta/Charades_v1_test.csv", "charades_sta", stems("id")),
    Published("charades_sta/charades.json", "charades_sta", keys),
    Published("charades_sta/temporal_grounding_charades.json", "charades_sta", last("video")),
    Published("charades_sta/tvgbench.json", "charades_sta", last("path")),
    Published("charades_sta/train_2k5.json", "charades_sta", last("video")),
    Published("coin/made/COIN.json", "coin", database),
    Published("conversations/qwen_vl_finetune_demo/video.json", "conversations", paths("video")),
    Published("conversations/lmms_finetune/ego4d_video_train.json", "conversations", paths("video")),
    Published(
        "conversations/made/llava_video_178k/0_30_s_academic_v0_1_mc_v0_1_qa_processed.json",
        "conversations",
        paths("video"),
    ),
    Published(
        "conversations/made/llava_video_178k/0_30_s_academic_v0_1_cap_processed.json", "conversations", paths("video")
    ),
    Published("conversations/made/sharegpt4video/sharegpt4video_40k.jsonl", "sharegpt4video", paths("video_path")),
    Published("howto100m/made/HowTo100M_v1.csv", "howto100m", stems("video_id")),
    Published("howto100m/made/caption.json", "howto100m", keys),
    Published("howto100m/made/howto100m_captions/*.csv", "howto100m", constant("made0000640.webm")),
    Published("internvid/made/InternVid.jsonl", "internvid", stems("YoutubeID")),
    *(
        Published(f"kinetics/kinetics-{year}_{split}.csv", "kinetics", windows)
        for year in ("400", "600", "700", "700_2020")
        for split in ("val", "test")
    ),
    Published("messages/mllm_video_demo.json", "messages", videos_of_messages),
    Published("messages/mllm_video_audio_demo.json", "messages", videos_of_messages),
    Published("messages/mllm_demo.json", "messages", constant("unrelated.mp4")),
    Published("messages/made/ms_swift/train.jsonl", "messages", videos_of_messages),
    Published("mmaction2/annotations/action_test_anno.json", "mmaction2", keys),
    Published("mmaction2/annotations/hvu_video_test_anno.json", "mmaction2", paths("filename")),
    Published("mmaction2/annotations/rawvideo_test_anno.json", "mmaction2", constant("rawvideo_dataset/part_0.mp4")),
    Published("mmaction2/annotations/rawvideo_test_anno.txt", "mmaction2", constant("rawvideo_dataset/part_0.mp4")),
    Published("mmaction2/annotations/video_test_list.txt", "mmaction2", words(0, "")),
    Published("mmaction2/annotations/video_test_list_multi_label.txt", "mmaction2", words(0, "")),
    Published("mmaction2/annotations/video_text_test_list.json", "mmaction2", constant("test.mp4")),
    Published("mmaction2/eval_localization/gt.json", "mmaction2", keys),
    Published("msrvtt/MSRVTT_JSFUSION_test.csv", "msrvtt", stems("video_id")),
    Published("msrvtt/MSRVTT_train.9k.csv", "msrvtt", stems("video_id")),
    Published("msrvtt/msrvtt_caption_test.json", "msrvtt", last("video")),
    Published("msrvtt/made/MSRVTT_data.json", "msrvtt", msrvtt),
    Published("msvd/msvd_caption_test.json", "msvd", last("video")),
    Published("msvd/val_list.txt", "msvd", words(0)),
    Published("nextqa/val.csv", "nextqa", stems("video")),
    Published("nextqa/test.csv", "nextqa", stems("video")),
    Published("openvid/made/OpenVid-1M.csv", "openvid", last("video")),
    Published("panda70m/made/panda70m_testing.csv", "panda70m", stems("videoID")),
    Published("qvhighlights/highlight_val_release.jsonl", "qvhighlights", stems("vid")),
    Published("qvhighlights/highlight_train_release.jsonl", "qvhighlights", stems("vid")),
    Published("qvhighlights/highlight_test_release.jsonl", "qvhighlights", stems("vid")),
    Published("shot2story/20k_meta.csv", "shot2story", stems("youtube_id")),
    Published("shot2story/made/20k_train.json", "shot2story", last("video")),
    Published("tacos/test.json", "tacos", files_named_by_keys),
    Published("timechat_dvc/example_gt_file.json", "timechat_dvc", last("image_id")),
    Published("vatex/val_list.txt", "vatex", words(0)),
    Published("vatex/made/vatex_validation_v1.0.json", "vatex", stems("videoID")),
    Published("vatex/made/vatex_public_test_english_v1.1.json", "vatex", stems("videoID")),
    Published("vidbridge_r1/made/train.jsonl", "vidbridge_r1", paths("video")),
    Published("video_r1/made/Video-R1-260k.json", "video_r1", paths("path")),
    Published("video_r1/made/Video-R1-COT-165k.json", "video_r1", paths("path")),
    Published("video_rts/cgbench_selected_training_samples.jsonl", "video_rts", last("video")),
    Published(
        "vript/made/vript_captions/*_caption.json",
        "vript",
        constant(*(f"made0000500/made0000500-Scene-00{scene}.mp4" for scene in range(1, 5))),
    ),
    Published(
        "vript/made/made0000500_asr.jsonl",
        "vript",
        constant(*(f"made0000500/made0000500-Scene-00{scene}.mp4" for scene in range(1, 5))),
    ),
    Published("vript/made/vript_stage1_single.json", "vript", last("video")),
    Published("youcook2/yc2_train.json", "youcook2", keys),
    Published("youcook2/yc2_val.json", "youcook2", keys),
    Published("youcook2/yc2_test.json", "youcook2", keys),
    Published("youcook2/validation_youcook.csv", "youcook2", stems("video_id")),
    Published("youcook2/made/youcookii_annotations_trainval.json", "youcook2", database),
)
