"""Every name of SGLang that this project relies on, with the parameters of its calls.

``lim-sglang doctor`` and ``make drift`` look for them. A name stands as ``function``, ``Class.method`` or
``Class.attribute``, with the parameters relied on in parentheses; ``Class: one other`` is two attributes.
"""

from __future__ import annotations

from lim_sglang.host.host_check import HostName


def _names(modules: dict[str, tuple[str, ...]], package: str = "sglang.srt") -> tuple[HostName, ...]:
    """The names by module below ``package``."""
    found = []
    for module, names in modules.items():
        for text in names:
            owner, several, attributes = text.partition(": ")
            for each in [f"{owner}.{attribute}" for attribute in attributes.split()] if several else [text]:
                name, _, parameters = each.removesuffix(")").partition("(")
                relied_on = tuple(parameters.split(", ")) if parameters else ()
                found.append(HostName(f"{package}.{module}", name, relied_on))
    return tuple(found)


PLUGIN_NAMES = _names(
    {
        "plugins.hook_registry": (
            "HookRegistry.register(target, hook, hook_type)",
            "HookRegistry: _patched _hooks apply_hooks",
            "HookType",
            "_propagate_patch",
        ),
        "layers.attention.attention_registry": ("register_attention_backend(name)", "ATTENTION_BACKENDS"),
        "server_args": (
            "add_attention_backend_choices(choices)",
            "ATTENTION_BACKEND_CHOICES",
            "ServerArgs.add_cli_args(parser)",
            "ServerArgs.from_cli_args(args)",
            "ServerArgs.check_server_args(self)",
        ),
        "configs.model_config": (
            "ModelConfig.from_server_args(server_args)",
            "ModelConfig.__init__(model_path, trust_remote_code, revision, model_override_args, "
            "override_config_file, model_config_parser)",
            "ModelConfig: hf_config hf_text_config context_len num_attention_layers is_hybrid_swa",
            "ModelConfig: sliding_window_size attention_chunk_size swa_attention_layer_ids is_encoder_decoder",
            "ModelConfig: has_attention_sinks is_generation dtype",
            "ModelConfig: num_hidden_layers num_attention_heads num_key_value_heads get_total_num_kv_heads",
            "is_minimax_sparse(config)",
            "AttentionArch.MHA",
        ),
        "configs.hybrid_arch": ("mambaish_config(model_config)", "hybrid_gdn_config(model_config)"),
        "configs.qwen3_next": ("Qwen3NextConfig: full_attention_layer_ids",),
        "distributed.utils": ("get_pp_indices(num_hidden_layers, pp_rank, pp_size)",),
        "distributed.parallel_state": (
            "model_parallel_is_initialized",
            "get_attn_tp_group",
            "GroupCoordinator.all_gather_into_tensor(output, input)",
        ),
        "runtime_context": ("get_parallel",),
        "managers.scheduler": ("Scheduler.get_internal_state(recv_req)",),
        "utils.common": ("assert_pkg_version(pkg, min_version)", "support_triton(backend)"),
        "constrained.xgrammar_backend": (
            "XGrammarGrammar.apply_vocab_mask(logits, vocab_mask)",
            "XGrammarGrammarBackend.apply_vocab_mask(logits, vocab_mask)",
        ),
        "plugins": ("load_plugins",),
        "mem_cache.allocation": ("get_last_loc", "get_last_loc_torch"),
        "managers.tokenizer_manager": ("TokenizerManager._validate_one_request",),
        "sampling.sampling_params": ("SamplingParams.verify",),
        "sampling.penaltylib.repetition_penalty": ("apply_scaling_penalties",),
    }
)
"""Registration, launch options, refusals, the report and the patches."""

TORCH_NATIVE_NAMES = _names(
    {
        "layers.attention.torch_native_backend": (
            "TorchNativeAttnBackend.__init__(model_runner)",
            "TorchNativeAttnBackend.init_forward_metadata(forward_batch)",
            "TorchNativeAttnBackend.forward_decode(q, k, v, layer, forward_batch, save_kv_cache)",
            "TorchNativeAttnBackend._run_sdpa_forward_decode(query, output, k_cache, v_cache, "
            "req_to_token, req_pool_indices, seq_lens, scaling)",
            "TorchNativeAttnBackend: token_to_kv_pool req_to_token_pool swa_out_cache_loc",
        ),
        "mem_cache.memory_pool": (
            "KVWriteLoc.loc",
            "MHATokenToKVPool.set_kv_buffer(layer, cache_k, cache_v)",
            "MHATokenToKVPool.get_key_buffer(layer_id)",
        ),
        "layers.radix_attention": (
            "RadixAttention: tp_q_head_num tp_k_head_num qk_head_dim v_head_dim scaling layer_id",
        ),
    }
)
"""The CPU backend."""

LOADED_MODEL_NAMES = _names(
    {
        "model_executor.model_runner": ("ModelRunner: model layer_info sliding_window_size",),
        "model_executor.model_runner_components.layer_setup": ("ModelLayerInfo: start_layer end_layer",),
        "layers.radix_attention": (
            "RadixAttention: sliding_window_size is_cross_attention attn_type tp_v_head_num",
            "AttentionType.ENCODER_ONLY",
        ),
        "models.transformers": ("TransformersBase.attention_instances",),
    }
)
"""What the loaded layers tell."""

FLASHINFER_NAMES = _names(
    {
        "layers.attention.flashinfer_backend": (
            "FlashInferAttnBackend.__init__(model_runner, init_new_workspace)",
            "FlashInferAttnBackend.init_forward_metadata(forward_batch)",
            "FlashInferAttnBackend.init_forward_metadata_out_graph(forward_batch, in_capture)",
            "FlashInferAttnBackend.forward_decode(q, k, v, layer, forward_batch, save_kv_cache)",
            "FlashInferAttnBackend._get_wrapper_idx(layer)",
            "FlashInferAttnBackend: workspace_buffer kv_last_page_len max_context_len decode_split_tile_size",
            "FlashInferAttnBackend: decode_use_tensor_cores disable_cuda_graph_kv_split",
            "FlashInferIndicesUpdaterDecode: num_qo_heads q_data_type data_type",
            "DecodeMetadata.decode_wrappers",
        ),
        "layers.attention.base_attn_backend": ("AttentionBackend.init_forward_metadata_in_graph(forward_batch)",),
    }
)
"""The CUDA backend."""

LOSSLESS_NAMES = _names(
    {
        "speculative.spec_info": (
            "SpeculativeAlgorithm.register(name, supports_overlap, spec_class)",
            "SpecInputType.NGRAM_VERIFY",
            "SpecInput.is_verify_input",
            "SpeculativeAlgorithm.NONE",
        ),
        "speculative.spec_registry": ("CustomSpecAlgo.handle_server_args(server_args)",),
        "speculative.base_spec_worker": ("BaseSpecWorker.on_verify_complete_cpu",),
        "managers.overlap_utils": ("FutureMap.__init__(device, req_to_token_pool)",),
        "managers.utils": ("GenerationBatchResult: accept_lens next_draft_input",),
        "managers.tp_worker": ("TpModelWorker.forward_batch_generation(batch, is_verify)", "TpModelWorker.random_seed"),
        "model_executor.forward_batch_info": (
            "ForwardMode: TARGET_VERIFY DECODE",
            "ForwardBatch.init_new(batch, model_runner, return_hidden_states_before_norm)",
        ),
        "model_executor.model_runner": (
            "ModelRunner.forward(forward_batch)",
            "ModelRunner._preprocess_logits(logits_output, sampling_info)",
            "ModelRunner: decode_cuda_graph_runner eager_runner attn_backend spec_algorithm",
            "ModelRunner.max_total_num_tokens",
        ),
        "layers.sampler": ("Sampler._preprocess_logits(logits, sampling_info)",),
        "managers.schedule_batch": (
            "Req: custom_logit_processor finished_len grammar reasoning_tokens",
            "Req.update_finish_state(new_accepted_len)",
            "ScheduleBatch.seq_lens_cpu",
        ),
        "managers.scheduler": ("Scheduler.init_req_max_new_tokens(req)",),
        "managers.scheduler_components.output_streamer": ("SchedulerOutputStreamer.stream_output(reqs)",),
        "managers.scheduler_components.weight_updater": (
            "SchedulerWeightUpdaterManager: draft_worker update_weights_from_disk update_weights_from_distributed",
            "SchedulerWeightUpdaterManager: update_weights_from_tensor update_weights_from_ipc",
            "SchedulerWeightUpdaterManager: resume_memory_occupation check_weights",
        ),
        "layers.linear": ("LinearBase",),
        "layers.moe.fused_moe_triton.layer": ("FusedMoE",),
        "layers.quantization.unquant": ("UnquantizedLinearMethod.apply(layer, x, bias)", "UnquantizedEmbeddingMethod"),
        "mem_cache.allocation_sizing": ("get_alloc_reserve_per_decode",),
        "layers.attention.torch_native_backend": (
            "TorchNativeAttnBackend.forward_extend(q, k, v, layer, forward_batch, save_kv_cache)",
        ),
        "layers.attention.flashinfer_backend": (
            "FlashInferAttnBackend.forward_extend(q, k, v, layer, forward_batch, save_kv_cache)",
            "PrefillMetadata.prefill_wrappers",
            "FlashInferAttnBackend.init_cuda_graph_state(max_bs, max_num_tokens)",
        ),
        "model_executor.runner.decode_cuda_graph_runner": (
            "DecodeCudaGraphRunner.__init__(model_runner, attn_backend)",
        ),
        "distributed.parallel_state": ("get_tp_group", "GroupCoordinator.broadcast_object(obj)"),
        "sampling.sampling_params": ("SamplingParams",),
        "sampling.sampling_batch_info": (
            "SamplingBatchInfo: temperatures top_ks top_ps min_ps is_all_greedy need_top_p_sampling",
            "SamplingBatchInfo: need_top_k_sampling need_min_p_sampling logit_bias",
        ),
    }
)
"""The lossless mode."""

FORKS = _names(
    {
        "arg_groups.model_override_base": ("resolving_view",),
        "layers.attention.qsa.config": ("is_qwen_qsa(config)",),
        "entrypoints.openai.serving_chat": ("OpenAIServingChat._process_logprobs_tokens(logprobs, use_token_index)",),
        "layers.logprob_processor": ("compute_spec_logprobs", "compute_spec_v2_logprobs"),
        "managers.scheduler_components.weight_updater": ("SchedulerWeightUpdaterManager.end_weight_update",),
    }
) + _names(
    {
        "elementwise.elementwise": ("fused_gate_sigmoid_mul_add",),
        "layernorm.elementwise": ("fused_gate_sigmoid_mul_add",),
    },
    "sglang.kernels.ops",
)
"""Names that only some of the tested releases have; ``compat`` or the patch looks which: none of them is a mismatch."""

HYBRID_NAMES = _names(
    {
        "fused_norm_gate": ("rms_norm_gated(x, g, weight, bias, activation, eps)",),
        "layernorm_gated": ("layernorm_fn(x, weight, bias, z, eps, norm_before_gate, is_rms_norm, activation)",),
    },
    "sglang.kernels.ops.attention.fla",
)
"""Hybrids with gated delta nets on the CPU host."""

HOST_NAMES = PLUGIN_NAMES + TORCH_NATIVE_NAMES + LOADED_MODEL_NAMES + FLASHINFER_NAMES + LOSSLESS_NAMES + HYBRID_NAMES

SERVER_ARGS_FIELDS = (
    "attention_backend",
    "attn_cp_size",
    "cpu_offload_gb",
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
    "enable_fp32_lm_head",
    "enable_hierarchical_cache",
    "enable_hisparse",
    "enable_lora",
    "enable_mixed_chunk",
    "enable_page_major_kv_layout",
    "enable_return_hidden_states",
    "enable_torch_compile",
    "enable_two_batch_overlap",
    "enable_weights_cpu_backup",
    "encoder_only",
    "host",
    "is_embedding",
    "json_model_override_args",
    "kv_cache_dtype",
    "mem_fraction_static",
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
