"""`opsin finetune`: a training run without a server, by the same engine process."""
