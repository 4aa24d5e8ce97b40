"""Each setting once: a frozen dataclass a job, without torch.

A field made by :func:`dsconvert.config.setting.setting` holds its default, help, range, choices,
and whether a resumed run may change it. To add an option, add a field.
"""
