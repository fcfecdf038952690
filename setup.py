"""Packaging. The wheel carries configs, tools and the model index in ``olor_mm/.mim``, where MIM looks for them.

There are no dependencies on purpose: pip must never touch the torch or the OpenMMLab packages of an environment, be
they upstream's or a fork's under other names. What is missing shows when it is imported.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
SHIPPED = ('configs', 'tools', 'model-index.yml')
# Of use in a checkout only: they make its environment.
LEFT_OUT = shutil.ignore_patterns('__pycache__', '*.pyc', 'setup_env.py', '_setup', 'matrix.py', '_matrix', 'work_dirs')


def copy_mim(package: Path) -> None:
    """Fills ``package/.mim`` with copies; what an earlier build left there goes first."""
    mim = package / '.mim'
    remove(mim)
    mim.mkdir(parents=True)
    for name in SHIPPED:
        source = HERE / name
        if source.is_dir():
            shutil.copytree(source, mim / name, ignore=LEFT_OUT)
        else:
            shutil.copy2(source, mim / name)


def link_mim() -> None:
    """Fills ``olor_mm/.mim`` of this checkout with links, so that an editable installation is never out of date."""
    mim = HERE / 'olor_mm' / '.mim'
    mim.mkdir(exist_ok=True)
    for name in SHIPPED:
        link, target = mim / name, os.path.join(os.pardir, os.pardir, name)
        if link.is_symlink() and os.readlink(link) == target:
            continue
        remove(link)
        link.symlink_to(target)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class BuildPy(build_py):
    """Copies into the build folder, links in editable mode; the checkout itself gets no copies."""

    def run(self) -> None:
        if getattr(self, 'editable_mode', False):
            super().run()
            link_mim()
            return
        # setuptools keeps modules of earlier builds that are no more in the source.
        remove(Path(self.build_lib) / 'olor_mm')
        super().run()
        copy_mim(Path(self.build_lib) / 'olor_mm')


class Develop(develop):
    """The editable mode of old."""

    def run(self) -> None:
        super().run()
        link_mim()


class Sdist(sdist):
    """Adds the copies to the archive's tree."""

    def make_release_tree(self, base_dir: str, files: list) -> None:
        super().make_release_tree(base_dir, files)
        copy_mim(Path(base_dir) / 'olor_mm')


def read(name: str) -> str:
    """A file's text; empty where it is absent."""
    path = HERE / name
    return path.read_text(encoding='utf-8') if path.is_file() else ''


def version() -> str:
    """The version, without importing the package."""
    return re.search(r"__version__ = '([^']+)'", read('olor_mm/version.py')).group(1)


if __name__ == '__main__':
    setup(
        name='olor_mm',
        version=version(),
        description='OLOR for OpenMMLab: fine-tuning that keeps what pre-training learned (AAAI 2024)',
        long_description=read('README.md'),
        long_description_content_type='text/markdown',
        author='The olor_mm authors',
        license='Apache-2.0',
        license_files=['LICENSE'],
        keywords='computer vision, fine-tuning, catastrophic forgetting, OpenMMLab',
        classifiers=[
            'Development Status :: 4 - Beta',
            'Programming Language :: Python :: 3',
            'Programming Language :: Python :: 3.10',
            'Programming Language :: Python :: 3.11',
            'Programming Language :: Python :: 3.12',
            'Topic :: Scientific/Engineering :: Artificial Intelligence',
        ],
        packages=find_packages(include=['olor_mm', 'olor_mm.*']),
        package_data={'olor_mm': ['py.typed'], 'olor_mm.rollback.single_pass': ['cpu.cpp']},
        python_requires='>=3.10',
        install_requires=[],
        extras_require={
            'analysis': ['matplotlib', 'optuna', 'plotly', 'scikit-learn'],
            'tests': ['hypothesis', 'pytest', 'pytest-timeout', 'pytest-xdist'],
            'lint': ['mypy', 'ruff'],
        },
        cmdclass={'build_py': BuildPy, 'develop': Develop, 'sdist': Sdist},
        zip_safe=False,
    )
