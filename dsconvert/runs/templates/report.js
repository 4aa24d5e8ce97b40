for (const box of document.querySelectorAll('.frames')) {
  const pictures = [...box.querySelectorAll('img')], label = box.querySelector('output');
  const show = i => { pictures.forEach((p, k) => p.classList.toggle('on', k == i));
    label.textContent = pictures[i].alt; };
  const slider = box.querySelector('input');
  slider.addEventListener('input', () => show(+slider.value));
  show(+slider.value);
}
