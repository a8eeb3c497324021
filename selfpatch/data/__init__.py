"""From files on disk to batches of crops: decode, image_folder, plan, multi_crop and loader; scenes makes images up."""
