#!/usr/bin/env bash
# The embedded model from nothing, in legs of at most ten minutes each on a machine with one large GPU.
#
#   scripts/embedded_model.sh render vae clip teach  # first leg
#   scripts/embedded_model.sh unet                   # second leg, and as many more as there are
#   scripts/embedded_model.sh decoder                # a leg at any time after the first: sharper, with the same latents
#   scripts/embedded_model.sh finish export pieces   # last leg: the learning rate falls to 0; the model, in small files
#
# Every stage goes on where it stood. Minutes, sizes and rates are the variables below; those that are set outside count,
# so that two CPU cores can take the same way (see weights/README.md). PYTHON needs latentgen[corpus] on its path.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
RUNS=${RUNS:-runs/embedded}
VOCABULARY=${VOCABULARY:-heroes}
PICTURES=${PICTURES:-60000}
WORKERS=${WORKERS:-$(nproc)}
PRECISION=${PRECISION:-bf16}

VAE_MINUTES=${VAE_MINUTES:-5}
VAE_BATCH=${VAE_BATCH:-64}
DECODER_MINUTES=${DECODER_MINUTES:-8}
DECODER_BATCH=${DECODER_BATCH:-32}
CLIP_MINUTES=${CLIP_MINUTES:-1.5}
CLIP_BATCH=${CLIP_BATCH:-512}
UNET_MINUTES=${UNET_MINUTES:-8}
UNET_BATCH=${UNET_BATCH:-256}
UNET_OPTIONS=${UNET_OPTIONS:-}       # such as --compile
PROBE=${PROBE-weights/probe/$VOCABULARY.safetensors}   # what the U-Net's features follow; empty: nothing
FINISH_STEPS=${FINISH_STEPS:-6000}
PIECE=${PIECE:-15m}

latentgen() { "$PYTHON" -m latentgen "$@"; }
common=(--mixed-precision "$PRECISION" --resume auto --log-every 100 --save-every 1000 --keep 1 --no-progress)
unet=(--data "$RUNS/scenes" --vae "$RUNS/vae/model" --text-encoder "$RUNS/taught" --cache "$RUNS/cache"
  --batch-size "$UNET_BATCH" --lr 1e-3 --muon-lr 0.02
  --timestep-sampling logit-normal --logit-mean 0.5 --logit-std 1.4 --sample-prompts weights/sample-prompts.txt)
[ -n "$PROBE" ] && unet+=(--align "$PROBE")

# Half as scenes come, the others in any colour and any setting: whose colour is whose, and what stands beside what, is
# learnt where none can be guessed.
render() {  # 15 ms a picture and core
  local part shard
  part() {
    latentgen data render --out "$RUNS/$1" --count "$2" --seed "$3" --vocabulary "$VOCABULARY" --captions-per-image 6 \
      --held-out exclude --workers "$WORKERS" "${@:4}"
  }
  part usual $((PICTURES / 2)) 0
  part pairs $((PICTURES * 3 / 10)) 10000000 --several only --colours any --settings any
  part singles $((PICTURES / 5)) 20000000 --several exclude --colours any --settings any
  mkdir -p "$RUNS/scenes"
  for part in usual pairs singles; do
    for shard in "$RUNS/$part"/*.tar; do ln -f "$shard" "$RUNS/scenes/$part-$(basename "$shard")"; done
  done
}

# Energy scaling: latents as large as what they change in the picture. The small KL weight keeps all components alive.
vae() {
  latentgen train-vae --data "$RUNS/scenes" --out "$RUNS/vae" --crop 128 --batch-size "$VAE_BATCH" --kl-weight 1e-6 \
    --scaling energy --muon-lr 0.014 --lr 5e-4 --warmup 50 --max-minutes "$VAE_MINUTES" "${common[@]}"
}

# On whole pictures: what its norms see there is not what they see of a crop. The latents stay as they are, those of `vae`
# as it was then: do not go on with `vae` after this. Encoding the pictures comes on top of the minutes, unless `unet` has.
decoder() {
  latentgen train-vae --data "$RUNS/scenes" --out "$RUNS/decoder" --init "$RUNS/vae/model" --decoder-only --crop 256 \
    --cache-latents --cache "$RUNS/cache" --batch-size "$DECODER_BATCH" --muon-lr 0.01 --lr 5e-4 --warmup 50 \
    --ema-decay 0.998 --perceptual none --max-minutes "$DECODER_MINUTES" "${common[@]}"
}

clip() {
  latentgen train-clip --data "$RUNS/scenes" --out "$RUNS/clip" --batch-size "$CLIP_BATCH" \
    --max-minutes "$CLIP_MINUTES" "${common[@]}"
}

# What CLIP's loss does not ask for: left and right, and which of two things is which. Some minutes of one CPU.
teach() {
  [ -d "$RUNS/taught" ] || "$PYTHON" scripts/teach_text.py "$RUNS/clip/model" "$RUNS/taught" --vocabulary "$VOCABULARY" \
    --apart left:right --apart purple:gray --colours any --settings any
}

# At a constant rate, as long as there is time: the average of the weights is what is drawn with.
unet() {
  latentgen train-unet "${unet[@]}" --out "$RUNS/unet" --ema-decay 0.9995 --warmup 200 \
    --max-minutes "$UNET_MINUTES" $UNET_OPTIONS "${common[@]}"
}

# From there to 0, which is worth as much as several times the samples.
finish() {
  local start=(--init "$RUNS/whole")
  latentgen export --unet "$RUNS/unet/model" --vae "$RUNS/vae/model" --text-encoder "$RUNS/taught" \
    --dtype float32 --out "$RUNS/whole" --overwrite
  latentgen train-unet "${unet[@]}" "${start[@]}" --out "$RUNS/finish" --ema-decay 0.999 --warmup 100 \
    --lr-scheduler cosine --max-steps "$FINISH_STEPS" $UNET_OPTIONS "${common[@]}"
}

export_model() {
  local last="$RUNS/unet" vae="$RUNS/vae"
  [ -d "$RUNS/finish/model" ] && last="$RUNS/finish"
  [ -d "$RUNS/decoder/model" ] && vae="$RUNS/decoder"
  latentgen export --unet "$last/model" --vae "$vae/model" --text-encoder "$RUNS/taught" \
    --out "$RUNS/embedded" --overwrite
}

# For ways that carry small files only; put together again with: cat embedded.tar.* | tar x
pieces() {
  mkdir -p "$RUNS/pieces"
  tar c -C "$RUNS" embedded | split -b "$PIECE" -d - "$RUNS/pieces/embedded.tar."
  for run in vae decoder clip unet finish; do
    [ ! -e "$RUNS/$run/log.jsonl" ] || cp "$RUNS/$run/log.jsonl" "$RUNS/pieces/$run.jsonl"
  done
}

for stage in "$@"; do
  case $stage in
    render | vae | decoder | clip | teach | unet | finish | pieces) "$stage" ;;
    export) export_model ;;
    *) echo "no such stage: $stage (render vae decoder clip teach unet finish export pieces)" >&2; exit 2 ;;
  esac
done
