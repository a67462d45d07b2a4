"The suite's own rules: what is wrong in the package is an error, not a line that nobody reads."

import warnings

import pytest


def warned(module):
    "A warning that a library would give to code of this module."
    warnings.warn_explicit("soon gone", DeprecationWarning, "there.py", 1, module=module)


@pytest.mark.parametrize("module", ["sft_nb", "sft_nb.features", "sft_nb.sources.pocket"])
def test_a_warning_to_our_own_code_is_an_error(module):
    with pytest.raises(DeprecationWarning, match="soon gone"):
        warned(module)


@pytest.mark.parametrize("module", ["torch.nn", "sft_nb_extra", "my.sft_nb"])
def test_a_warning_to_others_is_a_line(module):
    with pytest.warns(DeprecationWarning, match="soon gone"):
        warned(module)


def test_what_the_package_says_on_purpose_can_be_awaited():
    with pytest.warns(UserWarning, match="left out"):
        warnings.warn_explicit("one line was left out", UserWarning, "there.py", 1, module="sft_nb.store")


def test_a_torchvision_of_another_torch_is_told_and_no_error():
    with pytest.raises(UserWarning, match="something else"):
        warnings.warn_explicit("torchvision was built for another torch", UserWarning, "there.py", 1, module="sft_nb")
        warnings.warn_explicit("something else", UserWarning, "there.py", 1, module="sft_nb")
