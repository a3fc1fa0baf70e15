"""The mask-classification baseline (Fig. 1(a) of the paper): SAM proposes masks, CLIP chooses among them."""
