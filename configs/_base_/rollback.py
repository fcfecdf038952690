# The levels of the paper's Tables 6 and 7, to be put on any recipe: docs/inherit.md shows how.
_constructor = 'olor_mm.OLOROptimWrapperConstructor'

# Table 6, ViT-B with Adam.
rollback_cifar100_vit = dict(constructor=_constructor, rollback=dict(max_level=5e-3, min_level=0.0, power=2))
rollback_svhn_vit = dict(constructor=_constructor, rollback=dict(max_level=5e-3, min_level=0.0, power=2))
rollback_cub_vit = dict(constructor=_constructor, rollback=dict(max_level=5e-2, min_level=0.0, power=2))
rollback_stanford_cars_vit = dict(constructor=_constructor, rollback=dict(max_level=1e-2, min_level=0.0, power=4))
rollback_places_lt_vit = dict(constructor=_constructor, rollback=dict(max_level=1e-1, min_level=0.0, power=4))
rollback_ip102_vit = dict(constructor=_constructor, rollback=dict(max_level=1e-1, min_level=0.0, power=1))
rollback_office_home_vit = dict(constructor=_constructor, rollback=dict(max_level=1e-2, min_level=0.0, power=1))
rollback_pacs_vit = dict(constructor=_constructor, rollback=dict(max_level=1e-1, min_level=0.0, power=4))
rollback_ade20k_vit = dict(constructor=_constructor, rollback=dict(max_level=1e-4, min_level=0.0, power=1))

# Table 6, ConvNeXt-B with SGD.
rollback_cifar100_convnext = dict(constructor=_constructor, rollback=dict(max_level=5e-3, min_level=0.0, power=2))
rollback_svhn_convnext = dict(constructor=_constructor, rollback=dict(max_level=1e-4, min_level=0.0, power=2))
rollback_cub_convnext = dict(constructor=_constructor, rollback=dict(max_level=1e-2, min_level=0.0, power=2))
rollback_stanford_cars_convnext = dict(constructor=_constructor, rollback=dict(max_level=1e-4, min_level=0.0, power=2))
rollback_places_lt_convnext = dict(constructor=_constructor, rollback=dict(max_level=1e-2, min_level=0.0, power=4))
rollback_ip102_convnext = dict(constructor=_constructor, rollback=dict(max_level=5e-3, min_level=0.0, power=1))
rollback_office_home_convnext = dict(constructor=_constructor, rollback=dict(max_level=1.0, min_level=0.0, power=1))
rollback_pacs_convnext = dict(constructor=_constructor, rollback=dict(max_level=5e-2, min_level=0.0, power=4))
rollback_coco_convnext = dict(constructor=_constructor, rollback=dict(max_level=1e-2, min_level=0.0, power=2))

# Table 7, PACS by pre-training: supervised on ImageNet-21K, OpenCLIP on LAION-2B, MAE on ImageNet-1K.
rollback_pacs_vit_in21k = dict(constructor=_constructor, rollback=dict(max_level=1e-2, min_level=0.0, power=2))
rollback_pacs_vit_openclip = dict(constructor=_constructor, rollback=dict(max_level=1e-2, min_level=0.0, power=2))
rollback_pacs_vit_mae = dict(constructor=_constructor, rollback=dict(max_level=1e-2, min_level=0.0, power=2))

del _constructor
