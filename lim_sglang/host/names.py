"""Every name of SGLang that this project relies on, with the parameters of its calls; ``compat`` uses them."""

from __future__ import annotations

from lim_sglang.host.host_check import HostName

_SRT = "sglang.srt"
_BACKEND = f"{_SRT}.layers.attention.torch_native_backend"
_LAYER = f"{_SRT}.layers.radix_attention"
_POOL = f"{_SRT}.mem_cache.memory_pool"
_GRAMMAR = f"{_SRT}.constrained.xgrammar_backend"

PLUGIN_NAMES: tuple[HostName, ...] = (
    HostName(f"{_SRT}.plugins.hook_registry", "HookRegistry.register", ("target", "hook", "hook_type"), "all patches"),
    HostName(f"{_SRT}.plugins.hook_registry", "HookRegistry._patched", (), "knowing that the patches took"),
    HostName(f"{_SRT}.layers.attention.attention_registry", "register_attention_backend", ("name",), "the backend"),
    HostName(f"{_SRT}.server_args", "add_attention_backend_choices", ("choices",), "--attention-backend lim"),
    HostName(f"{_SRT}.server_args", "ATTENTION_BACKEND_CHOICES", (), "--attention-backend lim"),
    HostName(f"{_SRT}.server_args", "ServerArgs.add_cli_args", ("parser",), "--lim-* flags"),
    HostName(f"{_SRT}.server_args", "ServerArgs.from_cli_args", ("args",), "--lim-* flags"),
    HostName(f"{_SRT}.server_args", "ServerArgs.check_server_args", ("self",), "early refusals"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.from_server_args", ("server_args",), "early refusals"),
    HostName(
        f"{_SRT}.configs.model_config",
        "ModelConfig.__init__",
        (
            "model_path",
            "trust_remote_code",
            "revision",
            "model_override_args",
            "override_config_file",
            "model_config_parser",
        ),
        "early refusals",
    ),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.hf_config", (), "early refusals"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.hf_text_config", (), "early refusals"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.context_len", (), "windows that have an effect"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.num_attention_layers", (), "refusing loops"),
    HostName(f"{_SRT}.configs.model_config", "is_minimax_sparse", ("config",), "refusing attention of another backend"),
    HostName(f"{_SRT}.configs.model_config", "AttentionArch.MHA", (), "refusing MLA"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.is_hybrid_swa", (), "refusing sliding windows"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.sliding_window_size", (), "refusing sliding windows"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.is_encoder_decoder", (), "refusing encoder-decoders"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.has_attention_sinks", (), "refusing attention sinks"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.is_generation", (), "refusing models that do not decode"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.dtype", (), "refusing KV caches of another dtype"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.num_hidden_layers", (), "the layer plan"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.num_attention_heads", (), "the largest budget on a GPU"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.num_key_value_heads", (), "the layer plan's presets"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.get_total_num_kv_heads", (), "heads of a rank"),
    HostName(f"{_SRT}.configs.hybrid_arch", "mambaish_config", ("model_config",), "refusing linear attention"),
    HostName(f"{_SRT}.distributed.utils", "get_pp_indices", ("num_hidden_layers", "pp_rank", "pp_size"), "PP stages"),
    HostName(f"{_SRT}.distributed.parallel_state", "model_parallel_is_initialized", (), "counting once for all ranks"),
    HostName(f"{_SRT}.distributed.parallel_state", "get_attn_tp_group", (), "one token set for all ranks"),
    HostName(
        f"{_SRT}.distributed.parallel_state",
        "GroupCoordinator.all_gather_into_tensor",
        ("output", "input"),
        "one token set for all ranks",
    ),
    HostName(f"{_SRT}.runtime_context", "get_parallel", (), "counting once for all ranks"),
    HostName(f"{_SRT}.managers.scheduler", "Scheduler.get_internal_state", ("recv_req",), "/server_info"),
    HostName(f"{_SRT}.utils.common", "assert_pkg_version", ("pkg", "min_version"), "the versions that a GPU needs"),
    HostName(f"{_SRT}.utils.common", "support_triton", ("backend",), "serving without a GPU"),
    HostName(_GRAMMAR, "XGrammarGrammar.apply_vocab_mask", ("logits", "vocab_mask"), "grammars without a GPU"),
    HostName(_GRAMMAR, "XGrammarGrammarBackend.apply_vocab_mask", ("logits", "vocab_mask"), "grammars without a GPU"),
)

TORCH_NATIVE_NAMES: tuple[HostName, ...] = (
    HostName(_BACKEND, "TorchNativeAttnBackend.__init__", ("model_runner",), "the CPU backend"),
    HostName(_BACKEND, "TorchNativeAttnBackend.init_forward_metadata", ("forward_batch",), "the CPU backend"),
    HostName(
        _BACKEND,
        "TorchNativeAttnBackend.forward_decode",
        ("q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
        "dense and select layers",
    ),
    HostName(
        _BACKEND,
        "TorchNativeAttnBackend._run_sdpa_forward_decode",
        ("query", "output", "k_cache", "v_cache", "req_to_token", "req_pool_indices", "seq_lens", "scaling"),
        "sparse layers",
    ),
    HostName(_BACKEND, "TorchNativeAttnBackend.token_to_kv_pool", (), "the KV cache"),
    HostName(_BACKEND, "TorchNativeAttnBackend.req_to_token_pool", (), "the KV cache"),
    HostName(_BACKEND, "TorchNativeAttnBackend.swa_out_cache_loc", (), "the KV cache"),
    HostName(_POOL, "KVWriteLoc.loc", (), "the KV cache"),
    HostName(_POOL, "MHATokenToKVPool.set_kv_buffer", ("layer", "cache_k", "cache_v"), "the KV cache"),
    HostName(_POOL, "MHATokenToKVPool.get_key_buffer", ("layer_id",), "the KV cache"),
    HostName(_LAYER, "RadixAttention.tp_q_head_num", (), "head counts"),
    HostName(_LAYER, "RadixAttention.tp_k_head_num", (), "head counts"),
    HostName(_LAYER, "RadixAttention.qk_head_dim", (), "head sizes"),
    HostName(_LAYER, "RadixAttention.v_head_dim", (), "head sizes"),
    HostName(_LAYER, "RadixAttention.scaling", (), "the softmax scale"),
    HostName(_LAYER, "RadixAttention.layer_id", (), "the layer plan"),
)

_RUNNER = f"{_SRT}.model_executor.model_runner"

LOADED_MODEL_NAMES: tuple[HostName, ...] = (
    HostName(_RUNNER, "ModelRunner.model", (), "the loaded layers"),
    HostName(_RUNNER, "ModelRunner.layer_info", (), "the stage's layers"),
    HostName(_RUNNER, "ModelRunner.sliding_window_size", (), "windows"),
    HostName(f"{_RUNNER}_components.layer_setup", "ModelLayerInfo.start_layer", (), "the stage's layers"),
    HostName(f"{_RUNNER}_components.layer_setup", "ModelLayerInfo.end_layer", (), "the stage's layers"),
    HostName(_LAYER, "RadixAttention.sliding_window_size", (), "windows"),
    HostName(_LAYER, "RadixAttention.is_cross_attention", (), "refusing cross-attention"),
    HostName(_LAYER, "RadixAttention.attn_type", (), "refusing encoders"),
    HostName(_LAYER, "RadixAttention.tp_v_head_num", (), "head counts"),
    HostName(_LAYER, "AttentionType.ENCODER_ONLY", (), "refusing encoders"),
    HostName(f"{_SRT}.models.transformers", "TransformersBase.attention_instances", (), "the loaded layers"),
)

_FLASHINFER = f"{_SRT}.layers.attention.flashinfer_backend"

FLASHINFER_NAMES: tuple[HostName, ...] = (
    HostName(_FLASHINFER, "FlashInferAttnBackend.__init__", ("model_runner", "init_new_workspace"), "the CUDA backend"),
    HostName(_FLASHINFER, "FlashInferAttnBackend.init_forward_metadata", ("forward_batch",), "steps without a graph"),
    HostName(
        _FLASHINFER,
        "FlashInferAttnBackend.init_forward_metadata_out_graph",
        ("forward_batch", "in_capture"),
        "captured steps",
    ),
    HostName(
        f"{_SRT}.layers.attention.base_attn_backend",
        "AttentionBackend.init_forward_metadata_in_graph",
        ("forward_batch",),
        "captured steps",
    ),
    HostName(
        _FLASHINFER,
        "FlashInferAttnBackend.forward_decode",
        ("q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
        "decode",
    ),
    HostName(_FLASHINFER, "FlashInferAttnBackend._get_wrapper_idx", ("layer",), "sparse layers"),
    HostName(_FLASHINFER, "FlashInferAttnBackend.workspace_buffer", (), "sparse layers"),
    HostName(_FLASHINFER, "FlashInferAttnBackend.kv_last_page_len", (), "the largest batch"),
    HostName(_FLASHINFER, "FlashInferAttnBackend.max_context_len", (), "the longest request"),
    HostName(_FLASHINFER, "FlashInferAttnBackend.decode_split_tile_size", (), "deterministic inference"),
    HostName(_FLASHINFER, "FlashInferAttnBackend.decode_use_tensor_cores", (), "drafts planned ahead"),
    HostName(_FLASHINFER, "FlashInferAttnBackend.disable_cuda_graph_kv_split", (), "deterministic inference"),
    HostName(_FLASHINFER, "FlashInferIndicesUpdaterDecode.num_qo_heads", (), "head counts"),
    HostName(_FLASHINFER, "FlashInferIndicesUpdaterDecode.q_data_type", (), "dtypes"),
    HostName(_FLASHINFER, "FlashInferIndicesUpdaterDecode.data_type", (), "dtypes"),
    HostName(_FLASHINFER, "DecodeMetadata.decode_wrappers", (), "the step's slots"),
)

_SPECULATIVE = f"{_SRT}.speculative"
_BATCH = f"{_SRT}.managers.schedule_batch"

LOSSLESS_NAMES: tuple[HostName, ...] = (
    HostName(
        f"{_SPECULATIVE}.spec_info",
        "SpeculativeAlgorithm.register",
        ("name", "supports_overlap", "spec_class"),
        "--speculative-algorithm LIM",
    ),
    HostName(f"{_SPECULATIVE}.spec_info", "SpecInputType.NGRAM_VERIFY", (), "the verification's input"),
    HostName(f"{_SPECULATIVE}.spec_info", "SpecInput.is_verify_input", (), "the verification's input"),
    HostName(f"{_SPECULATIVE}.spec_registry", "CustomSpecAlgo.handle_server_args", ("server_args",), "its options"),
    HostName(f"{_SPECULATIVE}.base_spec_worker", "BaseSpecWorker.on_verify_complete_cpu", (), "counting drafts"),
    HostName(f"{_SRT}.managers.overlap_utils", "FutureMap.__init__", ("device", "req_to_token_pool"), "overlap"),
    HostName(f"{_SRT}.managers.utils", "GenerationBatchResult.accept_lens", (), "accepted drafts"),
    HostName(f"{_SRT}.managers.utils", "GenerationBatchResult.next_draft_input", (), "rounds"),
    HostName(
        f"{_SRT}.managers.tp_worker",
        "TpModelWorker.forward_batch_generation",
        ("batch", "is_verify"),
        "the dense verification",
    ),
    HostName(f"{_SRT}.model_executor.forward_batch_info", "ForwardMode.TARGET_VERIFY", (), "the dense verification"),
    HostName(
        f"{_SRT}.model_executor.forward_batch_info",
        "ForwardBatch.init_new",
        ("batch", "model_runner", "return_hidden_states_before_norm"),
        "drafts",
    ),
    HostName(_RUNNER, "ModelRunner.forward", ("forward_batch",), "drafts"),
    HostName(_RUNNER, "ModelRunner._preprocess_logits", ("logits_output", "sampling_info"), "penalties and grammars"),
    HostName(f"{_SRT}.layers.sampler", "Sampler._preprocess_logits", ("logits", "sampling_info"), "custom processors"),
    HostName(_BATCH, "Req.custom_logit_processor", (), "requests that may draft"),
    HostName(_BATCH, "Req.update_finish_state", ("new_accepted_len",), "the end of a request within a round"),
    HostName(_BATCH, "Req.finished_len", (), "the end of a request within a round"),
    HostName(f"{_SRT}.managers.scheduler", "Scheduler.init_req_max_new_tokens", ("req",), "room for the last rounds"),
    HostName(f"{_SRT}.mem_cache.allocation_sizing", "get_alloc_reserve_per_decode", (), "room for the last rounds"),
    HostName(f"{_SRT}.managers.tp_worker", "TpModelWorker.random_seed", (), "the same draws on all ranks"),
    HostName(_BATCH, "Req.grammar", (), "requests that may draft"),
    HostName(
        _BACKEND,
        "TorchNativeAttnBackend.forward_extend",
        ("q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
        "the dense verification on a CPU",
    ),
    HostName(
        _FLASHINFER,
        "FlashInferAttnBackend.forward_extend",
        ("q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
        "the dense verification on a GPU",
    ),
    HostName(_FLASHINFER, "PrefillMetadata.prefill_wrappers", (), "the dense verification on a GPU"),
    HostName(
        _FLASHINFER, "FlashInferAttnBackend.init_cuda_graph_state", ("max_bs", "max_num_tokens"), "graphs of each kind"
    ),
    HostName(
        f"{_SRT}.model_executor.runner.decode_cuda_graph_runner",
        "DecodeCudaGraphRunner.__init__",
        ("model_runner", "attn_backend"),
        "graphs of drafts",
    ),
    HostName(f"{_SPECULATIVE}.spec_info", "SpeculativeAlgorithm.NONE", (), "graphs of drafts"),
    HostName(_RUNNER, "ModelRunner.decode_cuda_graph_runner", (), "graphs of drafts"),
    HostName(_RUNNER, "ModelRunner.eager_runner", (), "graphs of drafts"),
    HostName(_RUNNER, "ModelRunner.attn_backend", (), "graphs of drafts"),
    HostName(_RUNNER, "ModelRunner.spec_algorithm", (), "graphs of drafts"),
    HostName(_RUNNER, "ModelRunner.max_total_num_tokens", (), "measuring costs"),
    HostName(_BATCH, "ScheduleBatch.seq_lens_cpu", (), "how much is drafted"),
    HostName(f"{_SRT}.distributed.parallel_state", "get_tp_group", (), "one choice for all ranks"),
    HostName(
        f"{_SRT}.distributed.parallel_state", "GroupCoordinator.broadcast_object", ("obj",), "one choice for all ranks"
    ),
)

HOST_NAMES = PLUGIN_NAMES + TORCH_NATIVE_NAMES + LOADED_MODEL_NAMES + FLASHINFER_NAMES + LOSSLESS_NAMES

SERVER_ARGS_FIELDS = (
    "attention_backend",
    "attn_cp_size",
    "dcp_size",
    "decode_attention_backend",
    "decrypted_config_file",
    "device",
    "disaggregation_mode",
    "dllm_algorithm",
    "dp_size",
    "dtype",
    "enable_deterministic_inference",
    "enable_dp_attention",
    "enable_hierarchical_cache",
    "enable_hisparse",
    "enable_lora",
    "enable_mixed_chunk",
    "enable_page_major_kv_layout",
    "enable_return_hidden_states",
    "enable_torch_compile",
    "enable_two_batch_overlap",
    "encoder_only",
    "host",
    "is_embedding",
    "json_model_override_args",
    "kv_cache_dtype",
    "model_config_parser",
    "model_path",
    "page_size",
    "port",
    "pp_size",
    "prefill_attention_backend",
    "random_seed",
    "revision",
    "sampling_backend",
    "speculative_accept_threshold_acc",
    "speculative_accept_threshold_single",
    "speculative_adaptive",
    "speculative_algorithm",
    "speculative_attention_mode",
    "speculative_draft_attention_backend",
    "speculative_draft_model_path",
    "speculative_draft_window_size",
    "speculative_eagle_topk",
    "speculative_num_draft_tokens",
    "speculative_num_steps",
    "speculative_token_map",
    "speculative_use_rejection_sampling",
    "tp_size",
    "trust_remote_code",
)
"""Launch options this project reads; a missing one is a mismatch, never a silent default."""
