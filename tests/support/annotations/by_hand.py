"""Values of published annotation files that a person has read in them."""

from __future__ import annotations

from typing import Any

#: By file and clip: what a person reads in the file, in exact seconds.
READ_BY_HAND: dict[tuple[str, str], dict[str, Any]] = {
    ("activitynet/activitynet_v1-3_valid_tsp_groundtruth.csv", "PLek2e8NlKc"): {
        "video": "videos/v_PLek2e8NlKc.mp4",
        "label": "Kneeling",
        "split": "validation",
        "events": [
            ("8.205021060842434", "80.18757956318254", "Kneeling"),
            ("109.55610062402495", "144.39522854914196", "Kneeling"),
        ],
        "length_s": "184.56666666666663",
    },
    ("activitynet/made/activity_net.v1-3.min.json", "made0000650"): {
        "label": "Made sport",
        "split": "train",
        "events": [("4.5", "60.25", "Made sport")],
        "length_s": "120.5",
    },
    ("activitynet_captions/val_1.json", "v_uqiMw7tQ1Cc"): {
        "split": "validation",
        "caption": "A weight lifting tutorial is given. The coach helps the guy in red with the proper body placement"
        " and lifting technique.",
        "events": [
            ("0.28", "55.15", "A weight lifting tutorial is given."),
            (
                "13.79",
                "54.32",
                "The coach helps the guy in red with the proper body placement and lifting technique.",
            ),
        ],
    },
    ("activitynet_captions/val_1.csv", "v_bXdq2zI1Ms0"): {
        "split": "validation",
        "events": [
            (
                "0",
                "10.23",
                "A man is seen speaking to the camera and pans out into more men standing behind him",
            ),
            ("10.6", "39.84", "The first man then begins performing martial arts moves while speaking to he camera"),
            ("38.01", "73.1", "He continues moving around and looking to the camera"),
        ],
        "length_s": "73.1",
    },
    ("activitynet_captions/paragraphs/anet_entities_val_1_para.json", "videos/v_uqiMw7tQ1Cc"): {
        "caption": "A weight lifting tutorial is given.   The coach helps the guy in red with the proper body"
        " placement and lifting technique.",
        "split": "validation",
        "source": "v_uqiMw7tQ1Cc",
    },
    ("charades_sta/charades_sta_test.txt", "AMT7R"): {
        "split": "test",
        "events": [("4.3", "12.5", "a person is putting a picture onto the wall.")],
    },
    ("charades_sta/Charades_v1_test.csv", "YSKX3"): {
        "caption": "A person fixes the bed then throws pillow on it.",
        "captions": [
            "A person looks under a mattress and pats the bed.  This person picks up a pillow, and throws it on the"
            " bed.",
            "A person is in a bedroom.  The person is fixing the bed. After the person cleans up his bed, the person"
            " leaves.",
        ],
        "length_s": "16.62",
    },
    ("charades_sta/charades.json", "videos/S9KOH"): {"split": "train", "length_s": "8", "events": []},
    ("charades_sta/temporal_grounding_charades.json", "videos/YVKIV"): {
        "events": [("4.4", "9.2", "the person puts down the bag.")]
    },
    ("charades_sta/tvgbench.json", "videos/pzvKbNsG-T8@290.11183-370.10183"): {
        "start": "290.11182998505626",
        "end": "370.10182998505627",
        "events": [("300", "326", "put message on paper and send")],
    },
    ("charades_sta/train_2k5.json", "videos/KgO7MJNO3oo@120.6-131.4"): {
        "start": "120.6",
        "end": "131.4",
        "events": [("120.6", "124.1", None)],
    },
    ("charades_sta/train_2k5.json", "videos/4jujhM5qhEc_00:00:39:000_00:01:24:700"): {
        "start": None,
        "end": None,
        "events": [("34.9", "41.9", "the statue of a man on horseback with four birds")],
        "length_s": "45.7",
    },
    ("conversations/qwen_vl_finetune_demo/video.json", "v_TpB_zMG3XBA"): {
        "caption": None,
        "open_qa": [
            (
                "Can you describe what the woman is doing on the lake?",
                "The woman is pulled forward in the lake and then begins to glide on the water using a surfboard. She"
                " sways left and right while sliding, and then slowly squats down, leaving the surfboard and falling"
                " into the water and floating on the surface.",
            )
        ],
    },
    (
        "conversations/made/llava_video_178k/0_30_s_academic_v0_1_mc_v0_1_qa_processed.json",
        "academic_source/Charades/ZZL1V",
    ): {
        "qa": [
            ("What does the person lift?", ("A crate.", "A chair.", "A ladder.", "Nothing."), "B"),
            ("Where?", ("In a hall.", "On a roof.", "In a car.", "Nowhere."), "A"),
        ]
    },
    ("conversations/made/sharegpt4video/sharegpt4video_40k.jsonl", "00000001-made"): {
        "video": "mixkit/Made/2.mp4",
        "caption": "Made caption of the whole clip.",
    },
    ("howto100m/made/howto100m_captions/*.csv", "made0000640"): {
        "events": [
            ("0", "4.1", "so today we make"),
            ("3.2", "9.6", "a made thing"),
            ("3.2", "7", "thing, out of wood"),
            ("9.6", "12.4", "okay"),
        ]
    },
    ("internvid/made/InternVid.jsonl", "made0000711@2.5-5.25"): {
        "start": "2.5",
        "end": "5.25",
        "caption": "a made caption",
        "source": "made0000711",
    },
    ("kinetics/kinetics-700_2020_val.csv", "--GkrdYZ9Tc_000000_000010"): {
        "label": "washing feet",
        "split": "validation",
        "start": "0",
        "end": "10",
    },
    ("kinetics/kinetics-700_2020_val.csv", "--nQbRBEz2s_000104_000114"): {
        "label": "air drumming",
        "start": None,
        "length_s": "10",
    },
    ("messages/mllm_video_audio_demo.json", "mllm_demo_data/4"): {
        "open_qa": [
            ("What is the video describing?", "A girl who is drawing a picture of a guitar and feel nervous."),
            ("What does this girl say?", "She says: 'Hello! Take a look at what am I drawing!'"),
            ("What is this girl drawing with?", "She is drawing with an iPad."),
        ]
    },
    ("messages/made/ms_swift/train.jsonl", "videos/made_4"): {"open_qa": [("And this?", "A made answer.")]},
    ("mmaction2/annotations/action_test_anno.json", "videos/v_test1"): {
        "label": "Rock climbing",
        "events": [("0.3", "0.6", "Rock climbing")],
    },
    ("msrvtt/MSRVTT_JSFUSION_test.csv", "video9773"): {"caption": "a boy plays grand theft auto 5", "split": "test"},
    ("msrvtt/made/MSRVTT_data.json", "video9001"): {
        "split": "validation",
        "caption": "a made sentence 0",
        "captions": ["a made sentence 1", "a made sentence 2"],
        "length_s": "11.72",
    },
    ("msvd/msvd_caption_test.json", "videos/eyhzdC936uk_15_27"): {"source": "eyhzdC936uk", "split": "test"},
    ("nextqa/val.csv", "4882821564"): {
        "split": "validation",
        "qa": [
            (
                "why did the boy pick up one present from the group of them and move to the sofa",
                (
                    "share with the girl",
                    "approach lady sitting there",
                    "unwrap it",
                    "playing with toy train",
                    "gesture something",
                ),
                "C",
            )
        ],
    },
    ("openvid/made/OpenVid-1M.csv", "videos/made0000721_1_0to122"): {
        "caption": "The video shows a made scene, slowly.",
        "source": "made0000721",
        "length_s": "4.067",
    },
    ("panda70m/made/panda70m_testing.csv", "made0000701@151.151-154.32"): {
        "start": "151.151",
        "end": "154.320",
        "caption": "A man's cart.",
    },
    ("qvhighlights/highlight_val_release.jsonl", "NUsG9BgSes0_210.0_360.0"): {
        "source": "NUsG9BgSes0",
        "split": "validation",
        "events": [("82", "150", "A girl and her mother cooked while talking with each other on facetime.")],
        "length_s": "150",
    },
    ("shot2story/20k_meta.csv", "LEwayCpIk20.78"): {"start": "730.47", "end": "743.49", "source": "LEwayCpIk20"},
    ("shot2story/made/20k_train.json", "made0000800.3"): {"caption": "A made summary of two shots."},
    ("timechat_dvc/example_gt_file.json", "videos/xHr8X2Wpmno"): {
        "events": [
            ("47", "60", "pick the ends off the verdalago"),
            ("67", "89", "combine lemon juice sumac garlic salt and oil in a bowl"),
            ("91", "98", "chop lettuce and place it in a bowl"),
            (
                "99",
                "137",
                "add verdalago pepper cucumbers tomatoes herbs and onions to the lettuce in the bowl",
            ),
            ("153", "162", "pour the dressing over the salad and mix"),
            ("163", "185", "add the fried pita to the salad and mix"),
        ],
        "length_s": "207",
    },
    ("vatex/made/vatex_validation_v1.0.json", "made0000601_000010_000020"): {
        "source": "made0000601",
        "caption": "A made English sentence 0.",
        "length_s": "10",
    },
    ("vidbridge_r1/made/train.jsonl", "videos/made_1"): {
        "caption": "A person lifts a crate.",
        "qa": [("What does the person lift?", ("A crate.", "A chair.", "A ladder.", "Nothing."), "A")],
    },
    ("video_r1/made/Video-R1-260k.json", "CLEVRER/train/video_00001"): {
        "qa": [],
        "open_qa": [("How many cubes collide?", "3")],
    },
    ("video_r1/made/Video-R1-COT-165k.json", "LLaVA-Video-178K/academic_source/Charades/ZZL0V"): {
        "qa": [("What does the person lift?", ("A crate.", "A chair.", "A ladder."), "A")]
    },
    ("video_rts/cgbench_selected_training_samples.jsonl", "videos/JuBBIJ7adjM"): {
        "qa": [
            (
                "In the video, what color hat is the man wearing at the beginning?",
                ("Off-white", "White", "Beige", "Ivory", "Cream", "Light Gray"),
                "B",
            )
        ]
    },
    ("vript/made/vript_captions/*_caption.json", "made0000500-Scene-002"): {
        "video": "made0000500/made0000500-Scene-002.mp4",
        "source": "made0000500",
        "caption": "Made scene 2: a hand turns a page.",
    },
    ("youcook2/made/youcookii_annotations_trainval.json", "made0000631"): {
        "split": "validation",
        "events": [("20", "33", "cut the made turnip"), ("40", "61", "fry it in butter")],
    },
}
