// The keys of every recipe section: name, meaning, range.
#include "trainer/config.h"

namespace graft::trainer {
namespace {

constexpr double kMaxSeconds = 1e7;
constexpr double kMaxRate = 1e3;
constexpr int64_t kMaxCount = int64_t{1} << 40;
constexpr int64_t kMaxRanks = 1 << 20;

}  // namespace

void RunSection::Visit(FieldVisitor& v) {
  v.Text({"name", "name of the run, shown in logs and reports"}, &name);
  v.Text({"output", "folder that the run writes; unset = runs/NAME"}, &output);
  v.Int({"seed", "seed of every random draw"}, &seed);
  v.Bool({"core", "allow core dumps"}, &core);
}

void ModelSection::Visit(FieldVisitor& v) {
  v.Text({"path", "HF model folder (config.json and safetensors)"}, &path);
  v.Text({"shape", "instead of path: a named shape with synthetic weights, for measurements"},
         &shape);
  v.Text({"dtype", "number type of the frozen weights and activations"}, &dtype,
         {"float32", "bfloat16"});
  v.Text({"quantize",
          "keep the layers' frozen matrices in 8 bits (int8) or about 4 (nf4); embeddings and head "
          "stay in dtype"},
         &quantize, {"none", "int8", "nf4"});
  v.Text(
      {"recompute", "layer = run each layer's forward again in the backward pass to save memory"},
      &recompute, {"none", "layer"});
  v.Bool({"follow_links", "allow links that leave the model folder"}, &follow_links);
}

void TaskSection::Visit(FieldVisitor& v) {
  v.Text({"type", "what is learnt"}, &type,
         {"causal_lm", "classification", "regression", "seq2seq"});
}

void DataSection::Visit(FieldVisitor& v) {
  v.Text({"train", "prepared data set to train on (launch/prepare.py data)"}, &train);
  v.Text({"eval", "prepared data set to evaluate on, or whose prompts are answered"}, &eval);
  v.Bool({"shuffle", "another order of the samples in every epoch"}, &shuffle);
  v.Bool({"packing", "put several samples into one row of row_length tokens"}, &packing);
  v.Int({"row_length", "tokens of a packed row; 0 = max_length of the data set"}, &row_length, 0,
        int64_t{1} << 24);
  v.Int({"max_samples", "use only the first samples; 0 = all"}, &max_samples, 0, kMaxCount);
}

void AdapterSection::Visit(FieldVisitor& v) {
  v.Text({"method", "what is trained"}, &method);
  v.TextList({"layers", "all, or a list of layer numbers and ranges such as 0-11"}, &layers);
  v.Text({"init_from", "adapter folder to start from, or to evaluate"}, &init_from);
  v.Text({"compute_dtype", "number type of the adapter's matrix products"}, &compute_dtype,
         {"model", "float32"});
  v.Text({"backbone_dropout", "model = the dropout probabilities of config.json"},
         &backbone_dropout, {"none", "model"});
  v.Bool({"track_sensitivity",
          "keep running averages of abs(weight x gradient) for score.method sensitivity"},
         &track_sensitivity);
  v.Begin({"head", "task head of classification and regression"});
  v.Bool({"train", "train the task head"}, &head_train);
  v.Real({"dropout", "dropout in the task head"}, &head_dropout, 0.0, 0.99);
  v.End();
}

void ParallelSection::Visit(FieldVisitor& v) {
  v.Int({"data", "replicas that share a global batch; data x pipeline = number of ranks"}, &data, 1,
        kMaxRanks);
  v.Int({"pipeline", "stages that the layers are cut into"}, &pipeline, 1, kMaxRanks);
  v.Text({"schedule", "order of micro-batches in the pipeline"}, &schedule,
         {"1f1b", "gpipe", "interleaved"});
  v.Int({"chunks", "parts of each stage with the interleaved schedule"}, &chunks, 1, 64);
  v.TextList({"split", "auto = by cost, or the number of layers of each stage"}, &split);
  v.Bool({"shard_weights",
          "the replicas of a stage share its layers' frozen matrices and gather a layer before its "
          "use (train and eval)"},
         &shard_weights);
  v.Text({"device", "where the tensors live; auto = cuda when there is a GPU for each rank"},
         &device, {"auto", "cpu", "cuda"});
  v.Text({"backend", "how ranks talk; auto = nccl on GPUs, else mpi"}, &backend,
         {"auto", "mpi", "nccl"});
  v.Int({"threads", "CPU threads of each rank; 0 = cores / ranks on the node"}, &threads, 0, 4096);
  v.Bool({"reserve_memory",
          "on a GPU: take the memory that `plan` predicts before the first step, so that none is "
          "allocated in steps and too little is an error at the start"},
         &reserve_memory);
  v.Bool({"cuda_graphs",
          "on a GPU: record a micro-batch's forward and backward pass once for each layout that "
          "comes again, as rows of one length do, and replay it"},
         &cuda_graphs);
  v.Bool({"deterministic",
          "on a GPU: kernels that give the same bits every time; false = a few percent faster, as "
          "huggingface/peft runs by default"},
         &deterministic);
}

void OptimSection::Visit(FieldVisitor& v) {
  v.Text({"name", "optimizer"}, &name, {"adamw"});
  v.Real({"lr", "peak learning rate"}, &lr, 0.0, kMaxRate);
  v.RealList({"betas", "decay rates of the two moments"}, &betas, 0.0, 1.0);
  v.Real({"eps", "added to the root of the second moment"}, &eps, 0.0, 1.0);
  v.Real({"weight_decay", "decoupled weight decay"}, &weight_decay, 0.0, kMaxRate);
  v.Real({"clip_norm", "largest global L2 norm of the gradients; 0 = off"}, &clip_norm, 0.0, 1e9);
  v.Text({"schedule", "how the learning rate runs after the warm-up"}, &schedule,
         {"constant", "linear", "cosine"});
  v.Int({"warmup_steps", "steps in which the learning rate rises from 0"}, &warmup_steps, 0,
        kMaxCount);
  v.Int({"steps", "steps of the run; 0 = from epochs"}, &steps, 0, kMaxCount);
  v.Int({"epochs", "passes over the data set when steps is 0"}, &epochs, 1, 1'000'000);
  v.Int({"global_batch", "samples (packed rows) of one step over all ranks"}, &global_batch, 1,
        int64_t{1} << 24);
  v.Int({"micro_batch", "samples that go through the model together on one rank"}, &micro_batch, 1,
        int64_t{1} << 24);
}

void CheckpointSection::Visit(FieldVisitor& v) {
  v.Int({"every", "steps between checkpoints; 0 = only at the end"}, &every, 0, kMaxCount);
  v.Int({"keep", "newest checkpoints that are kept"}, &keep, 1, 1'000'000);
  v.Text({"resume", "auto = go on from the newest one, never, or a checkpoint folder"}, &resume);
  v.Bool({"async", "write checkpoints beside the training"}, &async);
  v.Real({"lead_seconds",
          "time from a stop request to the end of the job; too short a one is warned of; 0 = "
          "unknown (launch/slurm sets it)"},
         &lead_seconds, 0, kMaxSeconds);
}

void EvalSection::Visit(FieldVisitor& v) {
  v.Int({"every", "steps between evaluations on data.eval; 0 = none"}, &every, 0, kMaxCount);
  v.Text({"metric", "which metric makes an adapter the best one"}, &metric);
  v.Int({"patience", "stop after so many evaluations without a better one; 0 = off"}, &patience, 0,
        kMaxCount);
}

void LogSection::Visit(FieldVisitor& v) {
  v.Int({"every", "steps between log lines; metrics.jsonl has every step"}, &every, 1, kMaxCount);
  v.Int({"trace", "steps that <run.output>/trace/ shows, from the second one on; 0 = none"}, &trace,
        0, 1000);
  v.Real({"peak_flops",
          "what a rank could compute at most, in FLOP/s, for `peft_mfu` in metrics.jsonl; 0 = "
          "unknown"},
         &peak_flops, 0, 1e18);
}

void WatchdogSection::Visit(FieldVisitor& v) {
  v.Real({"setup_seconds", "longest set-up phase; 0 = automatic"}, &setup_seconds, 0, kMaxSeconds);
  v.Real({"step_seconds", "longest step; 0 = automatic"}, &step_seconds, 0, kMaxSeconds);
  v.Real({"save_seconds", "longest save; 0 = automatic"}, &save_seconds, 0, kMaxSeconds);
  v.Real({"exit_seconds", "longest way out; 0 = automatic"}, &exit_seconds, 0, kMaxSeconds);
}

void ScoreSection::Visit(FieldVisitor& v) {
  v.Text({"method", "how a module's importance is measured; higher = keep"}, &method,
         {"loo", "keep_one", "ab", "ab_rank", "taylor", "taylor_abs", "taylor_sq", "sensitivity",
          "lora_drop", "lora_drop_relative", "magnitude", "random"});
  v.Text({"data", "prepared data set to measure on; unset = data.eval"}, &data);
  v.Text({"adapter", "LORA folder whose modules are scored; unset = adapter.init_from"}, &adapter);
  v.Text({"output",
          "folder of importance.json, setting.json and the journal; unset = "
          "<run.output>/score"},
         &output);
  v.Text({"from", "importance.json to select from again, without a model"}, &from);
  v.Text({"only", "setting.json whose modules alone are scored, or none"}, &only);
  v.Int({"max_samples", "measure on the first samples only; 0 = all"}, &max_samples, 0, kMaxCount);
  v.Int({"shard_samples", "samples of one work item"}, &shard_samples, 1, 1 << 20);
  v.Int({"layer_block", "layers of one work item of loo and keep_one"}, &layer_block, 1, 1 << 20);
  v.Int({"micro_batch", "samples that go through the model together"}, &micro_batch, 1, 1 << 20);
  v.Bool({"per_sample", "also write per_sample.safetensors, the values of every sample"},
         &per_sample);
  v.Begin({"select", "which modules are kept"});
  v.Text({"rule",
          "top_k_per_layer = the k highest of each layer, top_k = of the model; the budgets "
          "are in parameters, or in microseconds per decoded token"},
         &select.rule, {"top_k_per_layer", "top_k", "parameter_budget", "latency_budget"});
  v.Int({"k", "modules that top_k_per_layer and top_k keep"}, &select.k, 1, kMaxCount);
  v.Real({"budget", "what the kept modules may cost together"}, &select.budget, 0, 1e15);
  v.Bool({"rescale", "raise the rank so that the number of trainable parameters stays"},
         &select.rescale);
  v.Text({"round", "how the raised rank is rounded; nearest may exceed the budget slightly"},
         &select.round, {"floor", "nearest"});
  v.Int({"rank", "rank of the kept modules; 0 = derived"}, &select.rank, 0, 65536);
  v.Real({"alpha", "alpha of the kept modules; 0 = derived"}, &select.alpha, 0, 1e6);
  v.Text({"latency_file", "graft-latency file for latency_budget, or none"}, &select.latency_file);
  v.End();
}

void GenerateSection::Visit(FieldVisitor& v) {
  v.Int({"max_new_tokens", "longest answer in tokens"}, &max_new_tokens, 1, int64_t{1} << 24);
  v.Real({"temperature", "0 = greedy, else divides the logits before sampling"}, &temperature, 0,
         1e3);
  v.Real({"top_p", "sample from the smallest set of tokens with this probability"}, &top_p, 0, 1);
  v.Int({"beams", "above 1: beam search with so many beams, temperature 0"}, &beams, 1, 1024);
}

void TenantsSection::Visit(FieldVisitor& v) {
  v.TextList({"methods", "adapters that are measured beside the bare backbone"}, &methods,
             {"lora", "fanlora", "para", "red", "ia3", "prompt_tuning", "lopa", "idpg"});
  v.TextList(
      {"sizes",
       "rank = every method with this section's rank; parameters = as many trained parameters "
       "as LoRA on all linears has, where the method's size can be chosen"},
      &sizes, {"rank", "parameters"});
  v.TextList({"kernels",
              "how LoRA's rows are computed: grouped, or loop = adapter by adapter, as "
              "huggingface/peft does"},
             &kernels, {"grouped", "loop"});
  v.TextList({"batches", "numbers of requests that run beside each other"}, &batches);
  v.TextList({"mixes",
              "tenants of a batch of B: same = one, two, sqrt = the root of B, distinct = B, "
              "half_bare = B / 2 and as many rows without an adapter"},
             &mixes, {"same", "two", "sqrt", "distinct", "half_bare"});
  v.TextList({"prompts", "tokens of a prompt"}, &prompts);
  v.TextList({"new_tokens", "tokens of an answer; the end token ends none"}, &new_tokens);
  v.Int({"rank", "rank of LoRA, FanLoRA, PARA and LoPA"}, &rank, 1, 65536);
  v.Int({"modules", "linears that FanLoRA keeps of each layer"}, &modules, 1, 16);
  v.Int({"repeats", "runs of each combination, the methods taking turns"}, &repeats, 1, 1000);
  v.Bool({"merged", "also measure a model with LoRA merged into its weights"}, &merged);
  v.TextList({"cuda_graphs",
              "on a GPU: whether decoding steps are replayed as CUDA graphs; both = every "
              "combination with and without"},
             &cuda_graphs, {"true", "false"});
  v.Int({"memory_budget", "bytes of adapters that are ready to compute; 0 = no limit"},
        &memory_budget, 0, kMaxCount);
  v.Bool({"keep_adapters",
          "write LoRA's adapters, the prompts and the answers too, for a comparison with other "
          "programs"},
         &keep_adapters);
}

void BenchSection::Visit(FieldVisitor& v) {
  v.Int({"repeats", "how often collectives and schedules time each thing"}, &repeats, 1, 100'000);
  v.Int({"max_bytes", "collectives: largest message"}, &max_bytes, 4, int64_t{1} << 34);
  v.TextList({"schedules", "schedules: those that are measured"}, &schedules,
             {"gpipe", "1f1b", "interleaved"});
  v.Int({"length", "tokens of a sample, at most the model's positions"}, &length, 2,
        int64_t{1} << 24);
}

void ExportSection::Visit(FieldVisitor& v) {
  v.Text({"from", "checkpoint or adapter folder"}, &from);
  v.Text({"to", "folder to write"}, &to);
  v.Bool({"merge", "fold the adapter into the weights and write a whole model folder"}, &merge);
  v.Text({"as",
          "own = the method's own adapter folder; peft = a type of huggingface/peft that computes "
          "the same (RED's halves: what: scale as IA3, bias as BEFT)"},
         &as, {"own", "peft"});
}

}  // namespace graft::trainer
