"""From examples to arrays: prompt styles, chat templates, images, token ids."""
